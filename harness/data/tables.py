"""Rows of anybody's data: JSON, CSV and Parquet files, data sets that were saved, and those of the Hugging Face hub.

Nothing of them runs: they are parsed, and a data set that would bring code of its own is not loaded.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.files import is_file, is_folder, read_json
from harness.data.rows import checked_object, json_lines

HUB = "hf:"
FORMATS = ".jsonl (.gz too), .json, .csv, .tsv or .parquet, a folder that `save_to_disk` wrote, or hf:OWNER/NAME#SPLIT"
"""What can be read, in words."""
_HUB_PLACE = re.compile(
    r"hf:(?P<repository>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?#(?P<split>\w+)"
)

TableRow = tuple[str, Mapping[str, Any]]
"""A row behind its place in words: file and line, or number."""


def read_table(place: Path, wanted: Collection[str]) -> list[TableRow]:
    """All rows of a table.

    Args:
        place: a file, a folder with ``#SPLIT`` behind it where it holds several, or a data set of the hub as
            ``hf:OWNER/NAME[:CONFIG][@REVISION]#SPLIT``.
        wanted: columns to read; other ones may be left out.

    Returns:
        Each row behind its place. Rows of JSON need not have all columns: whoever reads one looks.

    Raises:
        HarnessError: no such file, one that is damaged or in no known format, a column that a table lacks, no rows.
    """
    rows = list(_reader_of(place)(place, wanted))
    if not rows:
        raise HarnessError(str(place), "no rows", "at least one")
    return rows


def first_row(place: Path) -> TableRow:
    """The first row of a table with all its columns, as :func:`read_table` finds it.

    Raises:
        HarnessError: as :func:`read_table`.
    """
    row = next(_reader_of(place)(place, None), None)
    if row is None:
        raise HarnessError(str(place), "no rows", "at least one")
    return row


def is_on_hub(place: Path | str) -> bool:
    """Whether a place is a data set of the hub."""
    return str(place).startswith(HUB)


def is_file_there(place: Path) -> bool:
    """Whether rows can be looked for: a file or folder is there; the hub's are not asked for."""
    return is_on_hub(place) or is_file(place) or is_folder(_saved(place)[0])


def names_no_revision(place: Path) -> bool:
    """Whether a data set of the hub is the newest one, whichever that is."""
    found = _HUB_PLACE.fullmatch(str(place))
    return found is not None and found["revision"] is None


def _reader_of(place: Path) -> Callable[[Path, Collection[str] | None], Iterator[TableRow]]:
    if is_on_hub(place):
        return _hub_rows
    if not is_file_there(place):
        raise HarnessError(
            str(place), f"no such file in {Path.cwd()}" * (not place.is_absolute()) or "no such file", FORMATS
        )
    if not is_file(place):
        return _saved_rows
    name = place.name.removesuffix(".gz")
    for suffix, reader in _READERS.items():
        if name.endswith(suffix) and (name == place.name or suffix in _PACKED):
            return reader
    raise HarnessError(str(place), f"a file whose name ends with {place.suffix or 'nothing'!r}", FORMATS)


def _line_rows(path: Path, wanted: Collection[str] | None) -> Iterator[TableRow]:
    return json_lines(path)


def _array_rows(path: Path, wanted: Collection[str] | None) -> Iterator[TableRow]:
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:  # text that is no UTF-8 is a ValueError
        said = f"a file that can't be read ({error})"
        raise HarnessError(str(path), said, "an array of JSON objects", "A row a line is .jsonl.") from error
    if not isinstance(values, list):
        raise HarnessError(str(path), f"a JSON {type(values).__name__}", "an array of JSON objects")
    for number, row in enumerate(values, start=1):
        yield (where := f"{path} row {number}"), checked_object(row, where)


def _csv_rows(path: Path, wanted: Collection[str] | None) -> Iterator[TableRow]:
    """A row may span lines; its place is the line that it ends on."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
            names = next(reader, [])
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise HarnessError(f"{path} line 1", f"two columns of the name {twice[0]!r}", "a name for each")
            _check_columns(path, names, wanted)
            for values in reader:
                where = f"{path} line {reader.line_num}"
                if values and len(values) != len(names):
                    raise HarnessError(where, f"{len(values)} values", f"{len(names)}, one a column", "Quote commas.")
                if values:
                    yield where, dict(zip(names, values, strict=True))
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(str(path), f"a file that can't be read ({error})", "CSV in UTF-8") from error
    except csv.Error as error:
        raise HarnessError(f"{path} line {reader.line_num}", f"no row of CSV ({error})", "CSV in UTF-8") from error


def _parquet_rows(path: Path, wanted: Collection[str] | None) -> Iterator[TableRow]:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        _check_columns(path, names, wanted)
        values = file.read(columns=[name for name in names if wanted is None or name in wanted]).to_pylist()
    except (OSError, arrow.ArrowException, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise HarnessError(str(path), f"a file that can't be read ({said})", "a Parquet file") from error
    yield from ((f"{path} row {number}", row) for number, row in enumerate(values, start=1))


def _saved_rows(place: Path, wanted: Collection[str] | None) -> Iterator[TableRow]:
    """Of a folder that ``Dataset.save_to_disk`` wrote, or ``DatasetDict.save_to_disk``."""
    import datasets

    folder, split = _saved(place)
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever datasets makes of a folder of somebody else's
        said = " ".join(str(error).split())[:200]
        raise HarnessError(
            str(folder), f"a folder that can't be read ({said})", "one that `save_to_disk` wrote"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            there = ", ".join(f"{folder}#{name}" for name in loaded)
            raise HarnessError(str(place), "a data set of several splits", f"one of them: {there}")
        loaded = loaded[split]
    elif split:
        raise HarnessError(str(place), "a data set without splits", f"{folder}")
    return _dataset_rows(place, loaded, wanted)


def _hub_rows(place: Path, wanted: Collection[str] | None) -> Iterator[TableRow]:
    if (found := _HUB_PLACE.fullmatch(str(place))) is None:
        raise HarnessError("data set of the hub", repr(str(place)), "hf:OWNER/NAME[:CONFIG][@REVISION]#SPLIT")
    loaded = load_hub_split(found["repository"], found["config"], found["split"], found["revision"])
    return _dataset_rows(place, loaded, wanted)


def load_hub_split(repository: str, config: str | None, split: str, revision: str | None = None) -> Any:
    """A split of a data set of the hub, as ``datasets`` has it.

    Raises:
        HarnessError: the hub does not give it.
    """
    import datasets

    named = {} if revision is None else {"revision": revision}
    try:
        return datasets.load_dataset(repository, config, split=split, **named)
    except Exception as error:  # whatever the hub's client raises: no network, no such set, a proxy's page
        reason = " ".join(str(error).split())[:200]
        found = f"no answer for {repository} ({type(error).__name__}: {reason})"
        fix = "Check the network, or put the files there yourself."
        raise HarnessError("the hub", found, "a download", fix) from error


def _dataset_rows(place: Path, loaded: Any, wanted: Collection[str] | None) -> Iterator[TableRow]:
    """Without columns that nobody reads: pictures and sounds would be decoded."""
    _check_columns(place, loaded.column_names, wanted)
    names = [name for name in loaded.column_names if wanted is None or name in wanted]
    chosen = loaded.select_columns(names)
    for number, row in enumerate(chosen, start=1):
        yield f"{place} row {number}", row


def _saved(place: Path) -> tuple[Path, str]:
    """A folder, and the split that is named behind it."""
    if is_folder(place):
        return place, ""
    folder, _, split = str(place).rpartition("#")
    return (Path(folder), split) if folder else (place, "")


def _check_columns(place: Path, names: Collection[str], wanted: Collection[str] | None) -> None:
    for name in wanted or ():
        if name not in names:
            raise no_column(str(place), name, names)


def no_column(where: str, name: str, names: Collection[str]) -> HarnessError:
    """The error of a column that is not there."""
    there = ", ".join(map(str, names)) or "none"
    return HarnessError(f"{where}, column {name!r}", f"no such column (there are {there})", "one of them")


_READERS: Mapping[str, Callable[[Path, Collection[str] | None], Iterator[TableRow]]] = {
    ".jsonl": _line_rows,
    ".ndjson": _line_rows,
    ".json": _array_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}
_PACKED = (".jsonl", ".ndjson")
