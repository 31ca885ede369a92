"""What a reader needs to cite and to repeat a run: BibTeX of its methods, and the command line."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

import methods

REFERENCES = Path(methods.__file__).with_name("references.bib")


def bibtex(papers: Iterable[tuple[str, str]]) -> list[str]:
    """The entries of methods, each once.

    Args:
        papers: name of each method and its ``paper``. An own entry is found by the name among an entry's keywords; a
            method without one, such as a plug-in's, gets what its paper's arXiv number gives.
    """
    entries = re.findall(r"^@\w+\{.*?^\}$", REFERENCES.read_text(encoding="utf-8"), flags=re.S | re.M)
    found: dict[str, None] = {}
    for name, paper in papers:
        own = [entry for entry in entries if re.search(rf"keywords = \{{[^}}]*\b{re.escape(name)}\b", entry)]
        number = re.search(r"arXiv:? ?(\d{4}\.\d{4,5})", paper)
        if own:
            found |= dict.fromkeys(re.sub(r",\n  keywords = \{.*?\}", "", entry) for entry in own)
        elif number is not None:
            eprint = f"  eprint = {{{number[1]}}},\n  archivePrefix = {{arXiv}}"
            found[f"@misc{{{re.sub(r'[^a-z0-9]+', '', name.lower())},\n{eprint}\n}}"] = None
    return list(found)


def command_line() -> str:
    """The command that is at work, where it is the harness's own; "" under a notebook or a test."""
    program = Path(sys.argv[0] if sys.argv else "")
    own = program.name == "harness" or (program.name == "__main__.py" and program.parent.name == "harness")
    return shlex.join(["harness", *sys.argv[1:]]) if own else ""
