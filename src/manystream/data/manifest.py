"""A manifest: one row a sample, one column a stream, whatever the files are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from manystream.data.image import IMAGE_SUFFIXES, MAX_PIXELS
from manystream.data.manifest_lines import SPLIT, Lines, Row, read_lines
from manystream.data.problems import OnError, Problem, Problems, Report, is_utf8
from manystream.data.splitting import TRAIN, TRAINVAL, VAL, HeldOut, leak
from manystream.data.streams import (
    LengthUnit,
    StreamHints,
    StreamKind,
    StreamSpec,
    color_first,
    names_of,
)
from manystream.data.table import Column, ImageFiles, SampleTable

SUFFIXES = (".csv", ".parquet")


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
    report: Report = print,
) -> SampleTable:
    """List the samples of a manifest: a ``.csv`` (UTF-8, with commas) or ``.parquet`` file.

    A column ``label`` is needed, ``split`` and ``group`` may be there, every other is a stream with
    paths of files below the manifest's folder. Without a column ``split`` every row is of "train".
    If no row is of "val", it is held out of "train" by group.

    Args:
        path: the file.
        splits: those to list, the one to train on first; all by default. "trainval" is train and
            val together.
        streams: columns to read, in order, or the streams as a model was trained on them; all by
            default, colour first.
        classes: those that a model was trained on; those of "train" by default.
        kinds: what a stream holds; found from its first image and its name by default.
        units: unit of a depth stream's files; they are converted to metres.
        held_out: how "val" is held out.
        max_pixels: height × width above which a file is unreadable.
        on_error: what rows and files that cannot be used do: ``"raise"``, or ``"skip"`` leaves such
            rows out, and such files count as absent.
        report: takes lines about what is left out or held out.

    Raises:
        ValueError: if the manifest is missing or damaged, or for a row without a usable label, of
            a class that training lacks, or with a file that is missing or outside the manifest's
            folder, unless such are to be skipped.
    """
    lines, problems = read_lines(Path(path)), Problems(on_error, report)
    hints = StreamHints(kinds or {}, units or {}, max_pixels)
    names = _names(streams, lines)
    rows = _usable(lines, problems)
    _check_trained(rows, lines)
    known = tuple(classes or _training_classes(rows, lines))
    held_out = None if VAL in {row.split for row in rows} else held_out or HeldOut()
    if held_out is not None:
        rows = _divided(rows, splits or (TRAIN, VAL), held_out, report)
    rows = _of_splits(rows, splits, lines, None if held_out else report)
    rows = _of_known_classes(rows, known, problems)
    files = _files(rows, names, lines.folder, problems)
    specs = _specs(streams, names, files, rows, lines, hints)
    hints.check(specs, lines.streams)
    return SampleTable(
        tuple(_column(spec, files, lines.folder, hints) for spec in specs),
        known,
        [next((of[x.name] for x in specs if x.name in of), "") for of in files],
        torch.tensor([known.index(row.label) for row in rows]),
        [row.split for row in rows],
        [row.group for row in rows],
        held_out if VAL in {row.split for row in rows} else None,
    ).without_empty()


def is_manifest(root: Path) -> bool:
    """Tell whether a path is a manifest."""
    return root.suffix.lower() in SUFFIXES and root.is_file()


def _usable(lines: Lines, problems: Problems) -> list[Row]:
    """Return the rows that say what they are; the others are a problem."""
    reasons = [(row, _unusable(row, lines)) for row in lines.rows]
    found = [Problem(row.where, reason) for row, reason in reasons if reason]
    problems.settle("rows that cannot be used", found, "are left out")
    return [row for row, reason in reasons if not reason]


def _unusable(row: Row, lines: Lines) -> str:
    if row.problem:
        return row.problem
    if not row.label:
        return "its label is empty; expected a class"
    if not any(row.cells[name] for name in lines.streams):
        return "it names no file of any stream; expected one or more"
    if not row.split:
        return "its split is empty; expected train, val, test or a name of your own"
    if not all(is_utf8(text) for text in (row.label, row.group, row.split)):
        return "its label, split or group is not UTF-8; save the manifest as UTF-8"
    return ""


def _check_trained(rows: Sequence[Row], lines: Lines) -> None:
    splits = dict.fromkeys(row.split for row in rows)
    if TRAIN not in splits:
        raise ValueError(
            f"no row of {lines.path} is of split {TRAIN!r}; there are {', '.join(splits) or 'none'}"
        )


def _training_classes(rows: Sequence[Row], lines: Lines) -> tuple[str, ...]:
    classes = tuple(sorted({row.label for row in rows if row.split == TRAIN}))
    if len(classes) < 2:
        raise ValueError(
            f"{lines.path} has one class only to train on, {classes[0]!r}; expected two or more"
        )
    return classes


def _divided(
    rows: Sequence[Row], wanted: Sequence[str], held_out: HeldOut, report: Report
) -> list[Row]:
    """Hold val out of the rows of train."""
    train = [row for row in rows if row.split == TRAIN]
    number = {label: i for i, label in enumerate(sorted({row.label for row in train}))}
    targets = [number[row.label] for row in train]
    names = iter(held_out.divide(wanted, targets, [row.group for row in train], report))
    return [
        replace(row, cells={**row.cells, SPLIT: next(names)}) if row.split == TRAIN else row
        for row in rows
    ]


def _of_splits(
    rows: Sequence[Row], wanted: Sequence[str] | None, lines: Lines, report: Report | None
) -> list[Row]:
    """Return the rows of the splits that are asked for; say what of those given has leaked."""
    there = list(dict.fromkeys(row.split for row in rows))
    names: list[str] = []
    for split in wanted or there:
        both = split == TRAINVAL and split not in there
        names += [TRAIN, VAL] if both else [split]
        if split not in there and not both:
            raise ValueError(
                f"split={split!r} is not in {lines.path}; there are {', '.join(there)}"
            )
        if report is not None and split not in (TRAIN, TRAINVAL):
            _report_leak(rows, split, report)
    return [row for name in dict.fromkeys(names) for row in rows if row.split == name]


def _report_leak(rows: Sequence[Row], split: str, report: Report) -> None:
    both = [row for row in rows if row.split in (TRAIN, split)]
    held_out = np.array([row.split == split for row in both])
    if any(row.group for row in both if row.split == split):
        report(
            f"{split}: {leak([row.group for row in both], held_out):.1%} of {held_out.sum()} "
            "samples are of a group that is in training"
        )


def _of_known_classes(rows: Sequence[Row], classes: Sequence[str], problems: Problems) -> list[Row]:
    unknown = [
        Problem(row.where, f"its class {row.label!r} is not one that is trained on")
        for row in rows
        if row.label not in classes
    ]
    problems.settle("rows of unknown classes", unknown, "are left out")
    return [row for row in rows if row.label in classes]


def _names(streams: Sequence[str | StreamSpec] | None, lines: Lines) -> list[str]:
    """Return the columns to read, in order."""
    if streams is None:
        return lines.streams
    names = names_of(streams, ())
    for name in names:
        if name not in lines.streams:
            raise ValueError(
                f"no stream {name!r} in {lines.path}; its columns are {', '.join(lines.streams)}"
            )
    return names


def _files(
    rows: Sequence[Row], names: Sequence[str], folder: Path, problems: Problems
) -> list[dict[str, str]]:
    """Check every file; one that cannot be used is a problem, and then absent."""
    found: list[Problem] = []
    files = [_files_of(row, names, folder, found) for row in rows]
    problems.settle("files that cannot be used", found, "count as absent")
    return files


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


def checked_file(folder: Path, cell: str) -> str:
    """Follow a manifest's path to the file it names.

    Args:
        folder: the manifest's folder, with links resolved.
        cell: as written, relative to the folder or absolute.

    Returns:
        The file relative to the folder, with links resolved.

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


def _specs(
    streams: Sequence[str | StreamSpec] | None,
    names: Sequence[str],
    files: Sequence[Mapping[str, str]],
    rows: Sequence[Row],
    lines: Lines,
    hints: StreamHints,
) -> tuple[StreamSpec, ...]:
    """Describe the streams by their files in the first split."""
    split = rows[0].split if rows else TRAIN
    shown = [of for of, row in zip(files, rows, strict=True) if row.split == split]
    given = {x.name: x for x in streams or () if isinstance(x, StreamSpec)}
    specs = [given.get(name) or _describe(name, shown, split, lines, hints) for name in names]
    return color_first(specs) if streams is None else tuple(specs)


def _describe(
    name: str, shown: Sequence[Mapping[str, str]], split: str, lines: Lines, hints: StreamHints
) -> StreamSpec:
    files = [lines.folder / of[name] for of in shown if name in of]
    if not files:
        raise ValueError(
            f"no row of split {split!r} in {lines.path} has a file in the column {name!r}; "
            "leave the column out, or choose other streams"
        )
    return hints.describe(name, files)


def _column(
    spec: StreamSpec, files: Sequence[Mapping[str, str]], folder: Path, hints: StreamHints
) -> Column:
    cells = [of.get(spec.name) for of in files]
    below = ImageFiles(folder, hints.max_pixels)
    return Column(spec, below, cells, hints.decoder(spec.name))
