"""Errors that a user can act on: the command line prints them without a traceback and exits with code 2."""


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
