"""Our warnings and those of plug-ins are heard once each; those of libraries never."""

from __future__ import annotations

import types
import warnings

import pytest

from harness.base.heard_warnings import hear_warnings


def library(name: str) -> types.ModuleType:
    """A module of that name with a function that warns; stacklevel 1 puts the warning into the module."""
    module = types.ModuleType(name)
    exec("import warnings\ndef warn(text, category=UserWarning): warnings.warn(text, category)", module.__dict__)
    return module


def test_each_once_in_order_and_on_one_line() -> None:
    said: list[str] = []
    with hear_warnings(said.append) as heard:
        for _ in range(3):
            warnings.warn("the loss\n  runs uncompiled", stacklevel=1)
            warnings.warn("plug-in broken", RuntimeWarning, stacklevel=1)
    assert said == heard == ["the loss runs uncompiled", "plug-in broken"]


@pytest.mark.parametrize("name", ["transformers", "transformers.training_args", "peft.tuners.lora", "torch.optim"])
def test_libraries_are_silent_by_name(name: str) -> None:
    with hear_warnings(lambda text: None) as heard:
        library(name).warn("use another argument")
        library(f"my_{name}").warn("a plug-in of mine")
        library("transformersx").warn("another name")
    assert heard == ["a plug-in of mine", "another name"]


def test_what_is_for_programmers_is_silent() -> None:
    with hear_warnings(lambda text: None) as heard:
        for category in (DeprecationWarning, FutureWarning, ResourceWarning, PendingDeprecationWarning):
            warnings.warn("gone in version 9", category, stacklevel=1)
    assert heard == []


def test_a_block_within_another_knows_what_was_said_and_repeats_nothing() -> None:
    outer: list[str] = []
    inner: list[str] = []
    with hear_warnings(outer.append):
        warnings.warn("first", stacklevel=1)
        with hear_warnings(inner.append) as heard:
            warnings.warn("first", stacklevel=1)
            warnings.warn("second", stacklevel=1)
        with hear_warnings(inner.append) as silent:
            pass
        warnings.warn("first", stacklevel=1)
    assert (outer, inner) == (["first"], ["second"])
    assert (heard, silent) == (["first", "second"], ["first"])
    again: list[str] = []
    with hear_warnings(again.append):  # a later run in the same process
        warnings.warn("first", stacklevel=1)
    assert again == ["first"]


def test_everything_is_as_before_afterwards() -> None:
    filters, show = list(warnings.filters), warnings.showwarning
    with pytest.raises(ZeroDivisionError), hear_warnings(print):
        1 / 0  # noqa: B018
    assert (list(warnings.filters), warnings.showwarning) == (filters, show)


def test_a_compilers_page_is_cut() -> None:
    with hear_warnings(lambda text: None) as heard:
        warnings.warn("x " * 5000, stacklevel=1)
    assert len(heard[0]) == 400
    assert heard[0].endswith("…")
