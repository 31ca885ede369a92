"""What was found of the code behind stages, kept on disk: a plan of the same code need not look again.

What is kept is found by the contents of all source files, so nothing can be stale. A file that is damaged is written
anew, one that can't be written costs the seconds again.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.base.code_closure import Closure, Sources
from harness.base.errors import HarnessError
from harness.base.files import digest_of, write_text
from harness.models.cache import cache_folder

KEPT = 8  # files: each has one state of all sources, and the oldest go


@dataclass(frozen=True)
class FoundCode:
    """What of a closure identities are made of.

    Attributes:
        digest: of what its definitions say.
        files: by path, a digest of what is used of the file.
        libraries: top-level names of what is imported from elsewhere and used.
    """

    digest: str
    files: Mapping[str, str]
    libraries: Sequence[str]

    @classmethod
    def of(cls, closure: Closure) -> FoundCode:
        return cls(closure.digest, closure.files, sorted(closure.libraries))


class CodeCache:
    """What closures of some sources gave, by what was asked.

    Args:
        sources: their places may become more.
    """

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self._places: Mapping[str, Path] = {}
        self._state = ""
        self._found: dict[str, FoundCode] = {}
        self._is_new = False

    def get(self, asked: Sequence[Sequence[str]], find: Callable[[], Closure]) -> FoundCode:
        """What is kept of a closure, else what ``find`` finds.

        Args:
            asked: the arguments of :meth:`~harness.base.code_closure.Sources.closure`.
        """
        if self._places != self.sources.places:
            self.keep()
            self._places = dict(self.sources.places)
            self._state = _state(self.sources)
            self._found = _read(_path(self._state))
        key = digest_of([list(each) for each in asked])
        if key not in self._found:
            self._found[key] = FoundCode.of(find())
            self._is_new = True
        return self._found[key]

    def keep(self) -> None:
        """Write what was found, unless a file has changed since: then nobody knows which state was read."""
        if self._is_new and _state(self.sources) == self._state:
            path = _path(self._state)
            found = {key: asdict(each) for key, each in (_read(path) | self._found).items()}
            with suppress(HarnessError, OSError):
                write_text(path, json.dumps({"digest": digest_of(found), "found": found}))
                _forget_old(path.parent)
        self._is_new = False


def _state(sources: Sources) -> str:
    """A digest of all that the sources say, and of what reads them."""
    said = [platform.python_version()]
    for name, place in sorted(sources.places.items()):
        said.append(f"{name} {place.is_relative_to(sources.root)}")
        said += (f"{path.relative_to(place)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in _files(place))
    return digest_of(said)


def _files(place: Path) -> Iterator[Path]:
    yield from [place] if place.is_file() else sorted(place.rglob("*.py"))


def _path(state: str) -> Path:
    return cache_folder() / "code" / f"{state[:32]}.json"


def _read(path: Path) -> dict[str, FoundCode]:
    """What a file keeps; nothing where it is missing or not as it was written."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if digest_of(kept["found"]) == kept["digest"]:
            return {key: FoundCode(**each) for key, each in kept["found"].items()}
    return {}


def _forget_old(folder: Path) -> None:
    for old in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        old.unlink(missing_ok=True)
