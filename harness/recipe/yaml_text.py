"""YAML as recipes hold it: of bounded size, no key twice, no number that reads as another one than it looks like."""

from __future__ import annotations

import re

import yaml

MAX_BYTES = 2**18


class YamlError(ValueError):
    """What is wrong with a text, and the line where known."""

    def __init__(self, found: str, line: int | None = None) -> None:
        super().__init__(found)
        self.found, self.line = found, line


def parse_yaml(text: str) -> object:
    """The values of a text.

    Raises:
        YamlError: it is no YAML, or is none of a recipe.
    """
    if len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        raise YamlError(f"more than {MAX_BYTES // 1024} KiB")
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(f"{error.problem or error.context}".split())
        raise YamlError(f"text that is no YAML of a recipe ({said})", mark.line + 1 if mark else None) from error
    except RecursionError:
        raise YamlError("brackets or indents that are nested too deep") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise YamlError(f"text that is no YAML ({' '.join(str(error).split())})") from error


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but 2e-5 is a number, as a person means it, and 010 and 1:30 are neither 8 nor 90."""

    def construct_document(self, node: yaml.Node) -> object:
        self.deep_construct = True  # else an anchor could hold itself
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r:.60} stands there twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        made: dict[object, object] = super().construct_mapping(node, deep)
        return made

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = node.value
        if ":" in text or re.match(r"[-+]?0[0-9_]", text) or len(text) > 100:
            said = (
                f"{text:.30} is read as another number than it looks like, or is too long for one; in quotes it is text"
            )
            raise yaml.constructor.ConstructorError(problem=said, problem_mark=node.start_mark)
        number: int | float = (
            self.construct_yaml_int(node) if node.tag.endswith(":int") else self.construct_yaml_float(node)
        )
        return number


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
