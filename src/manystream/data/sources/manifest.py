"""A manifest: one row a sample, one column a stream, whatever the files are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from manystream.data.problems import Problem, is_utf8
from manystream.data.source import StreamSpec
from manystream.data.sources.files import FileSample, FileSource
from manystream.data.sources.hints import color_first
from manystream.data.sources.manifest_paths import checked_file
from manystream.data.sources.manifest_table import SPLIT, Row, Table, read_table
from manystream.data.sources.wanted import TRAIN, TRAINVAL, VAL, Wanted
from manystream.data.splitting import leak

SUFFIXES = (".csv", ".parquet")


def is_manifest(root: Path) -> bool:
    """Whether a path is a manifest."""
    return root.suffix.lower() in SUFFIXES and root.is_file()


def open_manifest(wanted: Wanted) -> FileSource:
    """Open the rows of one split.

    If no row is of split ``val``, it is held out of the rows of ``train`` by group. ``trainval`` is
    both. Without a column ``split`` every row is of ``train``.

    Raises:
        ValueError: if the manifest is missing or damaged, or for a row without a usable label, of
            a class that training lacks, or with a file that is missing or outside the manifest's
            folder, unless such are to be skipped.
    """
    table = read_table(wanted.root)
    splits = _by_split(_labelled(wanted, table), table)
    classes = wanted.classes or _training_classes(splits, table)
    rows = _of_known_classes(wanted, _rows_of_split(wanted, splits, table), classes)
    shown = _with_files(wanted, rows, _names(wanted, table), table.folder)
    streams = wanted.streams or _describe(wanted, table, shown)
    wanted.hints.check(streams, table.streams)
    return FileSource(
        table.folder,
        f"{table.path.stem}-{wanted.split}",
        streams,
        classes,
        [_sample(x, classes, streams) for x in shown],
        decode=wanted.hints.decoders(),
        max_pixels=wanted.options.max_pixels,
    )


class _Shown(NamedTuple):
    """A row and its files by stream, relative to the manifest's folder."""

    row: Row
    files: Mapping[str, str]


def _labelled(wanted: Wanted, table: Table) -> list[Row]:
    """Rows that say what they are; the others are a problem."""
    reasons = [(row, _unusable(row, table)) for row in table.rows]
    problems = [Problem(row.where, reason) for row, reason in reasons if reason]
    wanted.settle("rows that cannot be used", "are left out")(problems)
    return [row for row, reason in reasons if not reason]


def _unusable(row: Row, table: Table) -> str:
    if row.problem:
        return row.problem
    if not row.label:
        return "its label is empty; expected a class"
    if not any(row.cells[name] for name in table.streams):
        return "it names no file of any stream; expected one or more"
    if SPLIT in table.columns and not row.cells[SPLIT]:
        return "its split is empty; expected train, val, test or a name of your own"
    if not all(is_utf8(text) for text in (row.label, row.group, row.cells.get(SPLIT, ""))):
        return "its label, split or group is not UTF-8; save the manifest as UTF-8"
    return ""


def _by_split(rows: Sequence[Row], table: Table) -> dict[str, list[Row]]:
    splits: dict[str, list[Row]] = {}
    for row in rows:
        splits.setdefault(row.cells.get(SPLIT, TRAIN), []).append(row)
    if TRAIN not in splits:
        raise ValueError(
            f"no row of {table.path} is of split {TRAIN!r}; there are {', '.join(splits) or 'none'}"
        )
    return splits


def _training_classes(splits: Mapping[str, Sequence[Row]], table: Table) -> tuple[str, ...]:
    classes = tuple(sorted({row.label for row in splits[TRAIN]}))
    if len(classes) < 2:
        raise ValueError(
            f"{table.path} has one class only to train on, {classes[0]!r}; expected two or more"
        )
    return classes


def _rows_of_split(
    wanted: Wanted, splits: Mapping[str, Sequence[Row]], table: Table
) -> Sequence[Row]:
    train, val = splits[TRAIN], splits.get(VAL)
    if val is None and wanted.split in (TRAIN, VAL, TRAINVAL):
        number = {name: i for i, name in enumerate(sorted({row.label for row in train}))}
        chosen = wanted.part([number[row.label] for row in train], [row.group for row in train])
        return [train[i] for i in chosen]
    if wanted.split == TRAINVAL:
        return [*train, *(val or ())]
    if wanted.split not in splits:
        raise ValueError(
            f"split={wanted.split!r} is not in {table.path}; there are {', '.join(splits)}"
        )
    _report_leak(wanted, train, splits[wanted.split])
    return splits[wanted.split]


def _report_leak(wanted: Wanted, train: Sequence[Row], rows: Sequence[Row]) -> None:
    if rows is train or not any(row.group for row in rows):
        return
    groups = [row.group for row in (*train, *rows)]
    held_out = np.arange(len(groups)) >= len(train)
    wanted.report(
        f"{wanted.split}: {leak(groups, held_out):.1%} of {len(rows)} samples are of a group that "
        "is in training"
    )


def _of_known_classes(wanted: Wanted, rows: Sequence[Row], classes: Sequence[str]) -> list[Row]:
    unknown = [
        Problem(row.where, f"its class {row.label!r} is not one that is trained on")
        for row in rows
        if row.label not in classes
    ]
    wanted.settle("rows of unknown classes", "are left out")(unknown)
    return [row for row in rows if row.label in classes]


def _names(wanted: Wanted, table: Table) -> list[str]:
    """Columns to read, in order."""
    names = table.streams if wanted.names is None else wanted.names
    for name in names:
        if name not in table.streams:
            raise ValueError(
                f"no stream {name!r} in {table.path}; its columns are {', '.join(table.streams)}"
            )
    return names


def _with_files(
    wanted: Wanted, rows: Sequence[Row], names: Sequence[str], folder: Path
) -> list[_Shown]:
    """Check every file; one that cannot be used is a problem, and then absent."""
    problems: list[Problem] = []
    shown = [_Shown(row, _files_of(row, names, folder, problems)) for row in rows]
    wanted.settle("files that cannot be used", "count as absent")(problems)
    return shown


def _files_of(
    row: Row, names: Sequence[str], folder: Path, problems: list[Problem]
) -> dict[str, str]:
    files = {}
    for name in names:
        if not (cell := row.cells[name]):
            continue
        try:
            files[name] = checked_file(folder, cell)
        except ValueError as error:
            problems.append(Problem(f"{row.where}, {name} {cell}", str(error)))
    return files


def _describe(wanted: Wanted, table: Table, shown: Sequence[_Shown]) -> tuple[StreamSpec, ...]:
    specs = [_describe_stream(wanted, table, shown, name) for name in _names(wanted, table)]
    return color_first(specs) if wanted.names is None else tuple(specs)


def _describe_stream(
    wanted: Wanted, table: Table, shown: Sequence[_Shown], name: str
) -> StreamSpec:
    files = [table.folder / x.files[name] for x in shown if name in x.files]
    if not files:
        raise ValueError(
            f"no row of split {wanted.split!r} in {table.path} has a file in the column {name!r}; "
            "leave the column out, or choose others with --data.streams"
        )
    return wanted.hints.describe(name, files)


def _sample(shown: _Shown, classes: Sequence[str], streams: Sequence[StreamSpec]) -> FileSample:
    files = tuple(shown.files.get(spec.name) for spec in streams)
    row = shown.row
    return FileSample(next(filter(None, files), ""), classes.index(row.label), files, row.group)
