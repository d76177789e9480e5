"""Data sets kept as folders, ``root/<split>/<stream>/<class>/<id>.<ext>``, or without classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from manystream.data.image import IMAGE_SUFFIXES, MAX_PIXELS
from manystream.data.problems import OnError, Problem, Problems, Report, is_utf8
from manystream.data.splitting import TRAIN
from manystream.data.streams import LengthUnit, StreamHints, StreamKind, StreamSpec, color_first
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
    first = _split_folder(root, splits[0] if splits else TRAIN)
    hints = StreamHints(kinds or {}, units or {}, max_pixels)
    specs = _specs(first, streams, hints)
    hints.check(specs, [found.name for found in _subfolders(first)])
    parts = {split: _split_folder(root, split) for split in splits}
    problems = Problems(on_error, report)
    for part in parts.values():
        problems.settle("names that are not UTF-8", _names_not_utf8(part), "are left out")
    samples = [x for split, part in parts.items() for x in _samples(part, split, specs)]
    known = _known_classes(samples, classes, parts)
    files = ImageFiles(root, max_pixels)
    return SampleTable(
        tuple(
            Column(spec, files, [x.files.get(spec.name) for x in samples], hints.decoder(spec.name))
            for spec in specs
        ),
        known,
        [x.id for x in samples],
        torch.tensor([known.index(x.label) for x in samples]),
        [x.split for x in samples],
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


class _Sample(NamedTuple):
    """A sample, and its files by stream, relative to the data set's folder."""

    split: str
    id: str
    files: Mapping[str, str]

    @property
    def label(self) -> str:
        return self.id.partition("/")[0]


def _samples(part: Path, split: str, specs: Sequence[StreamSpec]) -> list[_Sample]:
    suffixes = {spec.name: _suffixes(_stream_folder(part, spec.name)) for spec in specs}
    ids = sorted(filter(is_utf8, set().union(*suffixes.values())))
    if not ids:
        raise ValueError(
            f"no image under {part} for the streams {_listed(list(suffixes))}; expected {LAYOUT} "
            f"with a suffix of {', '.join(IMAGE_SUFFIXES)}"
        )
    return [
        _Sample(
            split,
            i,
            {m: f"{split}/{m}/{i}{found[i]}" for m, found in suffixes.items() if i in found},
        )
        for i in ids
    ]


def _known_classes(
    samples: Sequence[_Sample], classes: Sequence[str] | None, parts: Mapping[str, Path]
) -> tuple[str, ...]:
    """Return the classes given, or those of the first split, of which the others have no more."""
    by_split = {split: sorted({x.label for x in samples if x.split == split}) for split in parts}
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


def _specs(
    part: Path, streams: Sequence[str | StreamSpec] | None, hints: StreamHints
) -> tuple[StreamSpec, ...]:
    """Describe a split's streams by the first readable image of each."""
    if streams is not None:
        return tuple(
            _describe(_stream_folder(part, x), hints) if isinstance(x, str) else x for x in streams
        )
    specs = [_describe(stream, hints) for stream in _subfolders(part)]
    if not specs:
        raise ValueError(f"{part} has no stream folders; expected {LAYOUT}")
    return color_first(specs)


def _describe(stream: Path, hints: StreamHints) -> StreamSpec:
    files = list(_image_files(stream))
    if not files:
        raise ValueError(f"{stream} holds no image; expected {LAYOUT}; remove or fill the folder")
    return hints.describe(stream.name, files)


def _image_files(stream: Path) -> Iterator[Path]:
    for class_folder in _subfolders(stream):
        yield from _images_by_id(class_folder).values()


def _suffixes(stream: Path) -> dict[str, str]:
    """Return the suffix of the file of every ``class/id`` of one stream."""
    return {
        f"{class_folder.name}/{stem}": file.suffix
        for class_folder in _subfolders(stream)
        for stem, file in _images_by_id(class_folder).items()
    }


def _names_not_utf8(part: Path) -> list[Problem]:
    """Find images whose file or class has a name that reports and predictions cannot hold."""
    return [
        Problem(str(file), "its name is not UTF-8; rename it")
        for stream in _subfolders(part)
        for class_folder in _subfolders(stream)
        for file in sorted(class_folder.iterdir())
        if _is_image(file) and not is_utf8(f"{class_folder.name}/{file.name}")
    ]


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
