"""The program in a model's output, as EvalPlus takes it."""

import ast
import re
import warnings
from bisect import bisect_left
from collections.abc import Sequence

from harness.evaluate.programs.problems import Dataset, Problem, PromptStyle, generation_prompt, stop_strings


def solution_code(problem: Problem, output: str, *, dataset: Dataset, style: PromptStyle = "completion") -> str:
    """The program in an output, as EvalPlus takes it: cut at the stop strings, then its ``sanitize``.

    For a ``completion`` the prompt stands before it. Of a ``response``, fenced or not, the first code block that
    defines the function asked for is taken, else the first block, else all of the text.
    """
    for stop in stop_strings(dataset, style):
        output = output.split(stop, 1)[0]
    output = output.replace("\t", "    ")  # as EvalPlus does after decoding
    entry_point = str(problem["entry_point"])
    text = generation_prompt(problem) + output if style == "completion" else _code_block(output, entry_point)
    return _sanitize(text, entry_point)


_FENCED = re.compile(r"^[ ]*```[^\n]*\n(.*?)(?:^[ ]*```|\Z)", re.DOTALL | re.MULTILINE)


def _code_block(response: str, entry_point: str) -> str:
    """The part of an answer that holds the function: see ``solution_code``."""
    blocks = _FENCED.findall(response)
    defining = [block for block in blocks if re.search(rf"\bdef\s+{re.escape(entry_point)}\b", block)]
    return str([*defining, *blocks, response][0])


def _sanitize(text: str, entry_point: str) -> str:
    """EvalPlus's ``sanitize``, with the same result in bearable time, and for any text.

    Its ``code_extract`` parses every range of lines: 18 s for 768 empty lines, 86 s for 384 lines ``x``, and small
    students do write that. ``_longest_valid_range`` finds the same range in about a second at worst.
    """
    from evalplus import sanitize as evalplus

    evalplus.code_extract = _longest_valid_range
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a bad escape in generated code is no news
        try:
            return str(evalplus.sanitize(text, entry_point))
        except Exception:  # it parses whatever a model wrote, e.g. lone surrogates: as it stands, that fails its tests
            return text


def _longest_valid_range(text: str) -> str:
    """What EvalPlus's ``code_extract`` gives: of the ranges of two or more lines that parse, that with the most lines
    that are not blank, the first of equals; the first line if there is none."""
    from evalplus.syncheck import syntax_check

    lines = text.split("\n")
    filled = [0]  # lines that are not blank before line i
    for line in lines:
        filled.append(filled[-1] + bool(line.strip()))
    pairs = [(i, j) for i in range(len(lines)) for j in range(i + 1, len(lines)) if filled[j + 1] > filled[i]]
    pairs.sort(key=lambda pair: filled[pair[0]] - filled[pair[1] + 1])  # stable: the first of equals stays first
    last: dict[int, int] = {}  # for a first line: the last line after which what is there could still become valid
    for i, j in pairs:
        if j > last.get(i, j):
            continue
        if syntax_check(candidate := "\n".join(lines[i : j + 1])):
            return candidate
        if i not in last:
            last[i] = i - 1 + bisect_left(range(i, len(lines)), True, key=lambda end: _hopeless(lines[i : end + 1]))
    return lines[0]


def _hopeless(lines: Sequence[str]) -> bool:
    """These lines don't parse, and nor do they with any more lines after them: Python stopped before it read the last.

    Python says "incomplete input" where it stopped at the end; what else it says there is told by its words.
    """
    try:
        compile("\n".join(lines), "", "exec", ast.PyCF_ONLY_AST | _ALLOW_INCOMPLETE_INPUT)
    except SyntaxError as error:
        return not any(word in str(error.msg) for word in ("incomplete", "unterminated", "EOF"))
    except (ValueError, MemoryError, RecursionError):
        pass
    return False


_ALLOW_INCOMPLETE_INPUT = 0x4000  # codeop.PyCF_ALLOW_INCOMPLETE_INPUT, since Python 3.11
