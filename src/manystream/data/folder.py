"""Data sets kept as folders, ``root/<split>/<stream>/<class>/<id>.<ext>``, or without classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from manystream.data.image import IMAGE_SUFFIXES, MAX_PIXELS
from manystream.data.problems import OnError, Problem, Problems, Report, is_utf8
from manystream.data.splitting import TRAIN
from manystream.data.streams import (
    LengthUnit,
    StreamHints,
    StreamKind,
    StreamSpec,
    color_first,
    names_of,
)
from manystream.data.table import Column, ImageFiles, SampleTable

LAYOUT = "root/<split>/<stream>/<class>/<id>.<ext>"
"""Where an image of a data set is, as messages show it."""


def folder(
    root: str | Path,
    *,
    splits: Sequence[str] | None = None,
    streams: Sequence[str | StreamSpec] | None = None,
    classes: Sequence[str] | None = None,
    kinds: Mapping[str, StreamKind] | None = None,
    units: Mapping[str, LengthUnit] | None = None,
    max_pixels: int = MAX_PIXELS,
    on_error: OnError = "raise",
    report: Report = print,
) -> SampleTable:
    """List the samples of a data set kept as folders: ``root/<split>/<stream>/<class>/<id>.<ext>``.

    A sample is a class and an id, whichever streams have a file for it. Files other than images and
    names that begin with a dot are passed over.

    Args:
        root: the data set's folder.
        splits: folders of the splits, the one to train on first; all by default, "train" first.
        streams: names of the streams, in order, or the streams as a model was trained on them;
            all of the first split by default, colour first.
        classes: those that a model was trained on; those of the first split by default.
        kinds: what a stream holds; found from its first image and its name by default.
        units: unit of a depth stream's files; they are converted to metres.
        max_pixels: height × width above which a file is unreadable.
        on_error: what a name that is not UTF-8 does: ``"raise"``, or ``"skip"`` leaves it out.
        report: takes a line about what is left out.

    Raises:
        ValueError: if a folder is missing or empty, a class is unknown, there are fewer than two
            classes, or an id has two files in one stream.

    Example:
        >>> folder("shared/rooms").part("train")  # doctest: +SKIP
    """
    root = Path(root)
    splits = splits or sorted(available_splits(root), key=lambda name: (name != TRAIN, name))
    parts = {split: _split_folder(root, split) for split in splits or [TRAIN]}
    first = next(iter(parts.values()))
    available = [found.name for found in _subfolders(first)]
    names = available if streams is None else names_of(streams, ())
    if not names:
        raise ValueError(f"{first} has no stream folders; expected {LAYOUT}")
    found = {split: _scan(part, names) for split, part in parts.items()}
    problems = [Problem(str(x), "its name is not UTF-8; rename it") for x in _not_utf8(found)]
    Problems(on_error, report).settle("names that are not UTF-8", problems, "are left out")
    hints = StreamHints(kinds or {}, units or {}, max_pixels)
    given = {x.name: x for x in streams or () if isinstance(x, StreamSpec)}
    specs = [given.get(x) or _describe(x, first, found[splits[0]], hints) for x in names]
    specs = list(color_first(specs)) if streams is None else specs
    hints.check(specs, available)
    ids = {split: _ids(files, parts[split]) for split, files in found.items()}
    known = _known_classes(ids, classes, parts)
    samples = [(split, i) for split, of_split in ids.items() for i in of_split]
    below = ImageFiles(root, max_pixels)
    cells = {x: [_cell(split, x, i, found[split][x]) for split, i in samples] for x in names}
    return SampleTable(
        tuple(Column(x, below, cells[x.name], hints.decoder(x.name)) for x in specs),
        known,
        [i for _, i in samples],
        torch.tensor([known.index(_class_of(i)) for _, i in samples]),
        [split for split, _ in samples],
    )


def unlabelled(
    root: str | Path,
    streams: Sequence[StreamSpec],
    *,
    units: Mapping[str, LengthUnit] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> SampleTable:
    """List images without classes, to predict on: ``root/<stream>/<id>.<ext>``.

    Args:
        root: where the streams' folders are; a stream without one is absent from every sample.
        streams: the model's streams.
        units: unit of a depth stream's files, if the model takes it in metres.
        max_pixels: height × width above which a file is unreadable.

    Returns:
        A table without classes, whose targets are 0.

    Raises:
        ValueError: if there is no image of any stream, or the units do not fit the streams.
    """
    root, names = Path(root), [spec.name for spec in streams]
    hints = StreamHints(units=units or {}, max_pixels=max_pixels)
    hints.check(streams, names)
    found = {name: _images_by_id(root / name) for name in names}
    ids = sorted(set().union(*found.values()))
    if not ids:
        raise ValueError(
            f"no readable image of the streams {', '.join(names)} under {root}; expected "
            "<stream>/<id>.<ext>"
        )
    cells = {
        name: [f"{name}/{files[i].name}" if i in files else None for i in ids]
        for name, files in found.items()
    }
    files = ImageFiles(root, max_pixels)
    return SampleTable(
        tuple(Column(x, files, cells[x.name], hints.decoder(x.name)) for x in streams),
        (),
        ids,
        torch.zeros(len(ids), dtype=torch.int64),
        [""] * len(ids),
    )


def available_splits(root: str | Path) -> tuple[str, ...]:
    """Return the names of the splits below a data set's folder, sorted.

    Raises:
        ValueError: if ``root`` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"root={str(root)!r} is not a folder; expected one laid out as {LAYOUT}")
    return tuple(found.name for found in _subfolders(root))


_Files = dict[str, dict[str, Path]]
"""Files of a split: by the name of a stream and ``class/id``."""


def _scan(part: Path, names: Sequence[str]) -> _Files:
    return {
        name: {
            f"{class_folder.name}/{stem}": file
            for class_folder in _subfolders(_stream_folder(part, name))
            for stem, file in _images_by_id(class_folder).items()
        }
        for name in names
    }


def _not_utf8(found: Mapping[str, _Files]) -> Iterator[Path]:
    """Find files whose own or class's name reports and predictions cannot hold."""
    for files in found.values():
        for of_stream in files.values():
            yield from (x for i, x in of_stream.items() if not is_utf8(f"{i}{x.suffix}"))


def _describe(name: str, part: Path, files: _Files, hints: StreamHints) -> StreamSpec:
    if not files[name]:
        raise ValueError(
            f"{part / name} holds no image; expected {LAYOUT}; remove or fill the folder"
        )
    return hints.describe(name, files[name].values())


def _ids(files: _Files, part: Path) -> list[str]:
    ids = sorted(filter(is_utf8, set().union(*files.values())))
    if not ids:
        raise ValueError(
            f"no image under {part} for the streams {_listed(list(files))}; expected {LAYOUT} "
            f"with a suffix of {', '.join(IMAGE_SUFFIXES)}"
        )
    return ids


def _known_classes(
    ids: Mapping[str, Sequence[str]], classes: Sequence[str] | None, parts: Mapping[str, Path]
) -> tuple[str, ...]:
    """Return the classes given, or those of the first split, of which the others have no more."""
    by_split = {split: sorted(set(map(_class_of, of_split))) for split, of_split in ids.items()}
    known = tuple(next(iter(by_split.values())) if classes is None else classes)
    for split, found in by_split.items():
        if unknown := [name for name in found if name not in known]:
            raise ValueError(
                f"{parts[split]} has classes that training lacks: {_listed(unknown)}; "
                f"expected only {_listed(known)}; remove them or add them to training"
            )
    if len(known) < 2:
        first = next(iter(parts.values()))
        raise ValueError(f"{first} has one class only: {_listed(known)}; expected two or more")
    return known


def _class_of(sample_id: str) -> str:
    return sample_id.partition("/")[0]


def _cell(split: str, stream: str, sample_id: str, files: Mapping[str, Path]) -> str | None:
    file = files.get(sample_id)
    return None if file is None else f"{split}/{stream}/{sample_id}{file.suffix}"


def _images_by_id(parent: Path) -> dict[str, Path]:
    """Return the images directly in a folder by the stems of their names; none without a folder.

    Raises:
        ValueError: if two files have the same stem.
    """
    files: dict[str, Path] = {}
    for file in sorted(parent.iterdir()) if parent.is_dir() else ():
        if not _is_image(file):
            continue
        if file.stem in files:
            raise ValueError(
                f"two files claim one sample: {files[file.stem].name} and {file.name} "
                f"in {parent}; expected one file per id; remove or rename one"
            )
        files[file.stem] = file
    return files


def _split_folder(root: Path, split: str) -> Path:
    splits = available_splits(root)
    if not (root / split).is_dir():
        raise ValueError(f"split={split!r} is not in {root}; splits there: {_listed(splits)}")
    return root / split


def _stream_folder(part: Path, name: str) -> Path:
    if not (part / name).is_dir():
        found = _listed([other.name for other in _subfolders(part)])
        raise ValueError(
            f"stream {name!r} has no folder in {part}; folders there: {found}; "
            "if the split truly lacks this stream, make an empty folder of that name"
        )
    return part / name


def _subfolders(parent: Path) -> list[Path]:
    """Return the folders directly in a folder, sorted, but for names that begin with a dot."""
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
