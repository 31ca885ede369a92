"""Errors that a user can act on: the command line prints them without a traceback and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class HarnessError(Exception):
    """One clear message about bad input: which field or file, what was found, what was expected, what to do.

    Args:
        where: the field (``train.steps``) or file (``data/gsm8k/train.jsonl line 12``) at fault.
        found: what stands there, quoted where that helps.
        expected: what should stand there.
        fix: what the user can do about it, as a sentence; empty where ``expected`` already says it.
    """

    def __init__(self, where: str, found: str, expected: str, fix: str = "") -> None:
        self.where, self.found, self.expected, self.fix = where, found, expected, fix
        message = f"{where}: found {found}; expected {expected}."
        super().__init__(f"{message} {fix}" if fix else message)


def suggest(name: str, known: Iterable[str], above: str = "") -> str:
    """'Did you mean "gold"?', or nothing; with what stands above a key, 'Did you mean "train.steps"?'."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f'Did you mean "{above}{near[0]}"?' if near else ""


def unknown(what: str, name: str, known: Collection[str]) -> HarnessError:
    """The error of a name that nothing has: all that there are, and the nearest."""
    return HarnessError(what, repr(name), f"one of {', '.join(known)}", suggest(name, known))
