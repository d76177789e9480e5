"""A manifest: one row a sample, one column a stream, whatever the files are called."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from manystream.data.files import StreamHints, table_of_files
from manystream.data.image import IMAGE_SUFFIXES, MAX_PIXELS
from manystream.data.problems import OnError, Printer, Problem, Problems, is_utf8
from manystream.data.splitting import TRAIN, TRAINVAL, VAL, HeldOut, leak
from manystream.data.streams import LengthUnit, StreamKind, StreamSpec, names_of
from manystream.data.table import Sample, SampleTable

SUFFIXES = (".csv", ".parquet")
LABEL, SPLIT, GROUP = "label", "split", "group"
"""Columns that hold no stream."""

_SEPARATORS = {";": "';'", "\t": "a tab", "|": "'|'"}


def manifest(
    path: str | Path,
    *,
    splits: Sequence[str] | None = None,
    streams: Sequence[str | StreamSpec] | None = None,
    classes: Sequence[str] | None = None,
    kinds: Mapping[str, StreamKind] | None = None,
    units: Mapping[str, LengthUnit] | None = None,
    held_out: HeldOut | None = None,
    max_pixels: int = MAX_PIXELS,
    on_error: OnError = "raise",
    report: Printer = print,
) -> SampleTable:
    """List the samples of a manifest: a ``.csv`` (UTF-8, with commas) or ``.parquet`` file.

    A column ``label`` is needed, ``split`` and ``group`` may be there, every other is a stream with
    paths of files below the manifest's folder. Without a column ``split`` every row is of "train".
    If no row is of "val", it is held out of "train" by group; "trainval" is both together. The
    arguments are those of :mod:`manystream.data.files`; of bad input, rows are left out and files
    count as absent if they are to be skipped.

    Raises:
        ValueError: if the manifest is missing or damaged, or for a row without a usable label, of
            a class that training lacks, or with a file that is missing or outside the manifest's
            folder, unless such are to be skipped.
    """
    path, problems = Path(path), Problems(on_error, report)
    available, rows = read_rows(path)
    names = names_of(available if streams is None else streams, ())
    if unknown := [name for name in names if name not in available]:
        raise ValueError(
            f"no stream {unknown[0]!r} in {path}; its columns are {', '.join(available)}"
        )
    rows = _settled("rows that cannot be used", rows, _unusable, problems)
    there = dict.fromkeys(row.sample.split for row in rows)
    if TRAIN not in there:
        raise ValueError(
            f"no row of {path} is of split {TRAIN!r}; there are {', '.join(there) or 'none'}"
        )
    trained = sorted({row.sample.label for row in rows if row.sample.split == TRAIN})
    if len(trained) < 2 and not classes:
        raise ValueError(
            f"{path} has one class only to train on, {trained[0]!r}; expected two or more"
        )
    known = classes or trained
    held_out = None if VAL in there else held_out or HeldOut()
    if held_out is not None:
        samples = [row.sample for row in rows]
        samples = held_out.divide(samples, trained, splits or (TRAIN, VAL), report)
        rows = [row._replace(sample=x) for row, x in zip(rows, samples, strict=True)]
    rows = _of_splits(rows, splits, path, None if held_out else report)
    rows = _settled(
        "rows of unknown classes", rows, partial(_not_trained_on, classes=known), problems
    )
    folder = path.resolve().parent
    samples = _with_files(rows, names, folder, problems)
    split = samples[0].split if samples else TRAIN
    table = table_of_files(
        samples,
        folder,
        streams=streams,
        available=available,
        classes=known,
        hints=StreamHints(kinds or {}, units or {}, max_pixels),
        no_image=f"no row of split {split!r} in {path} has a file in the column '<stream>'; "
        "leave the column out, or choose other streams",
        held_out=held_out,
    )
    cells = zip(*(column.cells for column in table.columns), strict=True)
    return replace(table, ids=[next(filter(None, of), "") for of in cells]).without_empty()


def is_manifest(root: Path) -> bool:
    """Tell whether a path is a manifest."""
    return root.suffix.lower() in SUFFIXES and root.is_file()


class Row(NamedTuple):
    """A row of a manifest: its line, for messages, and why it cannot be used, if it cannot.

    The sample has no id yet, and its cells are paths as written.
    """

    where: str
    sample: Sample
    problem: str = ""


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Read a manifest: the names of its streams, and its rows in order.

    White space around a cell does not count, lines without a cell neither.

    Raises:
        ValueError: if the file is missing or damaged, a column is named twice or not at all, there
            is no column ``label``, none of a stream, or no row.
    """
    if not path.is_file():
        raise ValueError(f"no manifest at {path}; expected a .csv or .parquet file")
    columns, lines = (_of_parquet if path.suffix.lower() == ".parquet" else _of_csv)(path)
    streams = [name for name in columns if name not in (LABEL, SPLIT, GROUP)]
    if twice := [name for name, count in Counter(columns).items() if count > 1 or not name]:
        raise ValueError(
            f"{path} has a column named {twice[0]!r}; expected a name for each, each once"
        )
    if LABEL not in columns or not streams:
        used = [name for sign, name in _SEPARATORS.items() if any(sign in x for x in columns)]
        cause = f". Its separator seems to be {used[0]}; save it with commas" if used else ""
        raise ValueError(
            f"{path} has the columns {', '.join(columns)}; expected {LABEL!r}, one for every "
            f"stream, and if you like {SPLIT!r} and {GROUP!r}{cause}"
        )
    if not lines:
        raise ValueError(f"{path} has no rows; expected one for every sample")
    return streams, [_row(f"{path}, {where}", cells, columns, streams) for where, cells in lines]


def _row(
    where: str, cells: Sequence[object], columns: Sequence[str], streams: Sequence[str]
) -> Row:
    if len(cells) != len(columns):
        problem = f"it has {len(cells)} cells; expected {len(columns)}"
        return Row(where, Sample("", {}, ""), problem)
    texts, problem = {}, ""
    for name, value in zip(columns, cells, strict=True):
        nothing = value is None or value != value  # NaN, as pandas and NumPy say it
        texts[name] = "" if nothing else str(value).strip()
        if name not in streams and isinstance(value, bytes | list | dict):
            kind = type(value).__name__
            problem = problem or f"its {name} is of type {kind}; expected a text or a number"
    files = {name: texts[name] or None for name in streams}
    split, group = texts.get(SPLIT, TRAIN), texts.get(GROUP, "")
    return Row(where, Sample("", files, texts[LABEL], split, group), problem)


def _of_csv(path: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    lines = []
    # Bytes that are no UTF-8 become lone surrogates, so that the line with them can be named.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for cells in reader:
                if any(stripped := [cell.strip() for cell in cells]):
                    lines.append((f"line {reader.line_num}", stripped))
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}; expected CSV") from error
    return (lines[0][1], lines[1:]) if lines else ([], [])


def _of_parquet(path: Path) -> tuple[list[str], list[tuple[str, list[object]]]]:
    import pyarrow  # Only those who have such files need it.
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    rows = enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True), start=1)
    return list(table.column_names), [(f"row {number}", list(cells)) for number, cells in rows]


def _unusable(row: Row) -> str:
    """Say why a row cannot be used; nothing if it can."""
    sample = row.sample
    if row.problem:
        return row.problem
    if not sample.label:
        return "its label is empty; expected a class"
    if not any(sample.cells.values()):
        return "it names no file of any stream; expected one or more"
    if not sample.split:
        return "its split is empty; expected train, val, test or a name of your own"
    if not all(map(is_utf8, (sample.label, sample.group, sample.split))):
        return "its label, split or group is not UTF-8; save the manifest as UTF-8"
    return ""


def _not_trained_on(row: Row, classes: Sequence[str]) -> str:
    label = row.sample.label
    return "" if label in classes else f"its class {label!r} is not one that is trained on"


def _settled(
    what: str, rows: Sequence[Row], unusable: Callable[[Row], str], problems: Problems
) -> list[Row]:
    """Return the rows that can be used; the others are a problem."""
    reasons = [(row, unusable(row)) for row in rows]
    found = [Problem(row.where, reason) for row, reason in reasons if reason]
    problems.settle(what, found, "are left out")
    return [row for row, reason in reasons if not reason]


def _of_splits(
    rows: Sequence[Row], wanted: Sequence[str] | None, path: Path, report: Printer | None
) -> list[Row]:
    """Return the rows of the splits that are asked for; say what of those given has leaked."""
    there = list(dict.fromkeys(row.sample.split for row in rows))
    names: list[str] = []
    for split in wanted or there:
        both = split == TRAINVAL and split not in there
        names += [TRAIN, VAL] if both else [split]
        if split not in there and not both:
            raise ValueError(f"split={split!r} is not in {path}; there are {', '.join(there)}")
        if report is not None and split not in (TRAIN, TRAINVAL):
            _report_leak([row.sample for row in rows], split, report)
    return [row for name in dict.fromkeys(names) for row in rows if row.sample.split == name]


def _report_leak(samples: Sequence[Sample], split: str, report: Printer) -> None:
    both = [x for x in samples if x.split in (TRAIN, split)]
    held_out = np.array([x.split == split for x in both])
    if any(x.group for x in both if x.split == split):
        report(
            f"{split}: {leak([x.group for x in both], held_out):.1%} of {held_out.sum()} "
            "samples are of a group that is in training"
        )


def _with_files(
    rows: Sequence[Row], names: Sequence[str], folder: Path, problems: Problems
) -> list[Sample]:
    """Check every file; one that cannot be used is a problem, and then absent."""
    found: list[Problem] = []
    samples = []
    for row in rows:
        files = {}
        for name in names:
            if not (cell := row.sample.cells[name]):
                continue
            try:
                files[name] = checked_file(folder, cell)
            except ValueError as error:
                found.append(Problem(f"{row.where}, {name} {cell}", str(error)))
        samples.append(row.sample._replace(cells=files))
    problems.settle("files that cannot be used", found, "count as absent")
    return samples


def checked_file(folder: Path, cell: str) -> str:
    """Follow a path as written to the file it names, below the manifest's folder.

    Both the folder and the file returned, which is relative to it, have their links resolved.

    Raises:
        ValueError: if the file is outside the folder, also by ``..`` or a link; or if it is
            missing, no image by its suffix, or its name is no UTF-8.
    """
    if not is_utf8(cell):
        raise ValueError("its name is not UTF-8; save the manifest as UTF-8 and rename the file")
    try:
        file = (folder / cell).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # Which of them, changes with Python.
        raise ValueError(f"it leads nowhere: {error}") from error
    if not file.is_relative_to(folder):
        raise ValueError(f"it is outside {folder}; expected a file below the manifest's folder")
    if file.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"it is no image; expected a suffix of {', '.join(IMAGE_SUFFIXES)}")
    if not file.is_file():
        raise ValueError(f"there is no file {file}; expected one, or an empty cell if it is absent")
    return file.relative_to(folder).as_posix()
