"""The rows of a manifest as they are written, each with the line it came from."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manystream.data.splitting import TRAIN

LABEL, SPLIT, GROUP = "label", "split", "group"
"""Columns that hold no stream."""

_SEPARATORS = {";": "';'", "\t": "a tab", "|": "'|'"}
_NO_TEXT = (bytes, list, dict)


@dataclass(frozen=True)
class Row:
    """One sample of a manifest; a text is empty where the manifest has none.

    Attributes:
        where: the manifest and the line, for messages.
        cells: by column; empty where a stream is absent.
        problem: why the row cannot be used; empty if it can.
    """

    where: str
    cells: Mapping[str, str]
    problem: str = ""

    @property
    def label(self) -> str:
        """Name of its class."""
        return self.cells.get(LABEL, "")

    @property
    def group(self) -> str:
        """The recording or room it shows."""
        return self.cells.get(GROUP, "")

    @property
    def split(self) -> str:
        """Name of its split."""
        return self.cells.get(SPLIT, TRAIN)


@dataclass(frozen=True)
class Lines:
    """A manifest as it is written.

    Attributes:
        path: the file.
        columns: their names, in order.
        rows: in order.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def folder(self) -> Path:
        """What paths are relative to, with links resolved."""
        return self.path.resolve().parent

    @property
    def streams(self) -> list[str]:
        """Columns that hold a stream."""
        return [name for name in self.columns if name not in (LABEL, SPLIT, GROUP)]


def read_lines(path: Path) -> Lines:
    """Read a manifest; white space around a cell does not count, lines without a cell neither.

    Raises:
        ValueError: if the file is missing or damaged, a column is named twice or not at all, there
            is no column ``label``, none of a stream, or no row.
    """
    if not path.is_file():
        raise ValueError(f"no manifest at {path}; expected a .csv or .parquet file")
    columns, rows = _of_parquet(path) if path.suffix.lower() == ".parquet" else _of_csv(path)
    lines = Lines(path, tuple(columns), tuple(rows))
    _check(lines)
    return lines


def _check(lines: Lines) -> None:
    twice = [name for name, count in Counter(lines.columns).items() if count > 1 or not name]
    if twice:
        raise ValueError(
            f"{lines.path} has a column named {twice[0]!r}; expected a name for each, each once"
        )
    if LABEL not in lines.columns or not lines.streams:
        raise ValueError(
            f"{lines.path} has the columns {', '.join(lines.columns)}; expected {LABEL!r}, "
            f"one for every stream, and if you like {SPLIT!r} and {GROUP!r}"
            f"{_other_separator(lines.columns)}"
        )
    if not lines.rows:
        raise ValueError(f"{lines.path} has no rows; expected one for every sample")


def _other_separator(columns: Sequence[str]) -> str:
    """Name a likely cause: one column that would be several."""
    used = [name for sign, name in _SEPARATORS.items() if any(sign in text for text in columns)]
    return f". Its separator seems to be {used[0]}; save it with commas" if used else ""


def _of_csv(path: Path) -> tuple[list[str], list[Row]]:
    # Bytes that are no UTF-8 become lone surrogates, so that the line with them can be named.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _numbered(csv.reader(file, strict=True), path)
        _, columns = next(lines, (0, []))
        return columns, [_csv_row(path, number, columns, cells) for number, cells in lines]


def _numbered(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        for cells in reader:
            if any(stripped := [cell.strip() for cell in cells]):
                yield reader.line_num, stripped
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; expected CSV") from error


def _csv_row(path: Path, number: int, columns: Sequence[str], cells: Sequence[str]) -> Row:
    where = f"{path}, line {number}"
    if len(cells) != len(columns):
        return Row(where, {}, f"it has {len(cells)} cells; expected {len(columns)}")
    return Row(where, dict(zip(columns, cells, strict=True)))


def _of_parquet(path: Path) -> tuple[list[str], list[Row]]:
    import pyarrow  # Only those who have such files need it.
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    rows = [
        _parquet_row(f"{path}, row {number}", cells)
        for number, cells in enumerate(table.to_pylist(), start=1)
    ]
    return list(table.column_names), rows


def _parquet_row(where: str, cells: Mapping[str, Any]) -> Row:
    texts = {name: _text(value) for name, value in cells.items()}
    for name in (LABEL, SPLIT, GROUP):
        if isinstance(cells.get(name), _NO_TEXT):
            kind = type(cells[name]).__name__
            return Row(where, texts, f"its {name} is of type {kind}; expected a text or a number")
    return Row(where, texts)


def _text(value: Any) -> str:
    nothing = value is None or value != value  # NaN, as pandas and NumPy say it
    return "" if nothing else str(value).strip()
