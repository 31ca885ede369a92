"""Python values as JSON and back, type by type: how inputs get into a sandbox, and how answers get out of it.

JSON's own values stand for themselves, arrays for lists; everything else is an object with one key, the name of the
type: ``{"tuple": [1, 2]}``. Reading builds plain values and runs nothing that the writer chose.

An object of any other class becomes an ``Unknown`` when it is read: it equals nothing. So an answer can't bring its own
``__eq__``. A subclass of a known type counts as that type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np


class Unknown:
    """What was of a class that is not carried over."""


_MOST_DIGITS = 4000  # of an integer in JSON: Python refuses to read more than 4,300
_MOST_ITEMS = 1_000_000  # of an iterator, which may be endless


def to_plain(value: Any) -> Any:
    """The value in terms of JSON.

    Raises:
        RecursionError: a value that contains itself, or is nested too deeply.
    """
    kind = type(value)
    if value is None or kind in (bool, str, float):
        return value
    if kind is int:
        return value if value.bit_length() < 3 * _MOST_DIGITS else {"int": hex(value)}
    if kind is list:
        return [to_plain(item) for item in value]
    if isinstance(value, np.generic) and value.dtype.str in _NUMPY:
        return {"numpy": [value.dtype.str, to_plain(value.item())]}
    if isinstance(value, np.ndarray) and (value.dtype.str in _NUMPY or value.dtype.kind in _SIZELESS):
        kind_name = value.dtype.kind if value.dtype.kind in _SIZELESS else value.dtype.str
        return {"array": [kind_name, to_plain(value.tolist())]}
    for base in kind.__mro__:
        if base in (int, float, str, list):
            return to_plain(base(value))
        if base in _PARTS:
            name, parts = _PARTS[base]
            return {name: to_plain(parts(value))}
    if isinstance(value, Iterable):
        return {"iterator": [to_plain(item) for item in islice(value, _MOST_ITEMS)]}
    return {"unknown": kind.__name__}


def from_plain(plain: Any) -> Any:
    """What ``to_plain`` was given, each part with its type.

    Raises:
        ValueError, KeyError, TypeError, RecursionError, ...: any error, for what ``to_plain`` did not make.
    """
    if isinstance(plain, list):
        return [from_plain(item) for item in plain]
    if isinstance(plain, dict):
        ((name, parts),) = plain.items()
        return _MAKE[name](from_plain(parts))
    return plain


def _pairs(mapping: Any) -> list[list[Any]]:
    return [[key, value] for key, value in mapping.items()]


def _scalar(parts: list[Any]) -> Any:
    return _dtype(parts[0]).type(parts[1])


def _array(parts: list[Any]) -> Any:
    return np.array(parts[1], dtype=parts[0] if parts[0] in _SIZELESS else _dtype(parts[0]))


def _dtype(name: str) -> np.dtype[Any]:
    if name not in _NUMPY:
        raise ValueError(f"dtype {name!r}")
    return np.dtype(name)


_NUMPY = {np.dtype(code).str for code in "?bBhHiIlLqQefdFD"}  # booleans, integers, floats, complex numbers
_SIZELESS = ("U", "O")  # texts, objects: NumPy finds the size itself
_PARTS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    tuple: ("tuple", list),
    set: ("set", list),
    frozenset: ("frozenset", list),
    dict: ("dict", _pairs),
    Counter: ("Counter", _pairs),
    type({}.keys()): ("keys", list),
    type({}.items()): ("items", lambda items: [list(pair) for pair in items]),
    complex: ("complex", lambda z: [z.real, z.imag]),
    Fraction: ("Fraction", lambda q: [q.numerator, q.denominator]),
    Decimal: ("Decimal", str),
}
_MAKE: dict[str, Callable[[Any], Any]] = {
    "int": lambda digits: int(digits, 16),
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "Counter": lambda pairs: Counter(dict(pairs)),
    "keys": lambda keys: dict.fromkeys(keys).keys(),
    "items": lambda pairs: dict(pairs).items(),
    "complex": lambda parts: complex(*parts),
    "Fraction": lambda parts: Fraction(*parts),
    "Decimal": Decimal,
    "numpy": _scalar,
    "array": _array,
    "iterator": iter,
    "unknown": lambda name: Unknown(),
}
