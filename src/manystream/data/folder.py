"""Data sets kept as folders, ``root/<split>/<stream>/<class>/<id>.<ext>``, or without classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from manystream.data.files import StreamHints, table_of_files
from manystream.data.image import IMAGE_SUFFIXES, MAX_PIXELS
from manystream.data.problems import OnError, Printer, Problem, Problems, is_utf8
from manystream.data.splitting import TRAIN
from manystream.data.streams import LengthUnit, StreamKind, StreamSpec, names_of
from manystream.data.table import Sample, SampleTable

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
    report: Printer = print,
) -> SampleTable:
    """List the samples of a data set kept as folders: ``root/<split>/<stream>/<class>/<id>.<ext>``.

    A sample is a class and an id, whichever streams have a file for it. Files other than images and
    names that begin with a dot are passed over. The arguments are those of
    :mod:`manystream.data.files`; bad input is a name that is not UTF-8.

    Raises:
        ValueError: if a folder is missing or empty, a class is unknown, there are fewer than two
            classes, or an id has two files in one stream.

    Example:
        >>> folder("shared/rooms").part("train")  # doctest: +SKIP
    """
    root = Path(root)
    there = available_splits(root)
    splits = list(dict.fromkeys(splits or sorted(there, key=lambda name: (name != TRAIN, name))))
    for split in splits or [TRAIN]:
        if not (root / split).is_dir():
            raise ValueError(f"split={split!r} is not in {root}; splits there: {_listed(there)}")
    first = root / splits[0]
    available = [found.name for found in _subfolders(first)]
    names = available if streams is None else names_of(streams, ())
    if not names:
        raise ValueError(f"{first} has no stream folders; expected {LAYOUT}")
    found = {split: {name: _scan(root / split, name) for name in names} for split in splits}
    problems = [
        Problem(str(file), "its name is not UTF-8; rename it")
        for files in found.values()
        for of_stream in files.values()
        for i, file in of_stream.items()
        if not is_utf8(f"{i}{file.suffix}")
    ]
    Problems(on_error, report).settle("names that are not UTF-8", problems, "are left out")
    samples = {split: _samples(root, split, files) for split, files in found.items()}
    return table_of_files(
        [sample for of_split in samples.values() for sample in of_split],
        root,
        streams=streams,
        available=available,
        classes=_known_classes(root, samples, classes),
        hints=StreamHints(kinds or {}, units or {}, max_pixels),
        no_image=f"{first / '<stream>'} holds no image; expected {LAYOUT}; remove or fill the "
        "folder",
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
    root, names = Path(root), names_of(streams, ())
    hints = StreamHints(units=units or {}, max_pixels=max_pixels)
    hints.check(streams, names)
    found = {name: _images_by_id(root / name) for name in names}
    samples = [
        Sample(i, {name: f"{name}/{of[i].name}" for name, of in found.items() if i in of}, "")
        for i in sorted(set().union(*found.values()))
    ]
    if not samples:
        raise ValueError(
            f"no readable image of the streams {', '.join(names)} under {root}; expected "
            "<stream>/<id>.<ext>"
        )
    return SampleTable.of(samples, hints.columns(streams, root), ())


def available_splits(root: str | Path) -> tuple[str, ...]:
    """Return the names of the splits below a data set's folder, sorted.

    Raises:
        ValueError: if ``root`` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"root={str(root)!r} is not a folder; expected one laid out as {LAYOUT}")
    return tuple(found.name for found in _subfolders(root))


def _scan(part: Path, stream: str) -> dict[str, Path]:
    """Find the files of a stream in a split, by ``class/id``."""
    if not (part / stream).is_dir():
        found = _listed([other.name for other in _subfolders(part)])
        raise ValueError(
            f"stream {stream!r} has no folder in {part}; folders there: {found}; "
            "if the split truly lacks this stream, make an empty folder of that name"
        )
    return {
        f"{of_class.name}/{stem}": file
        for of_class in _subfolders(part / stream)
        for stem, file in _images_by_id(of_class).items()
    }


def _samples(root: Path, split: str, files: Mapping[str, Mapping[str, Path]]) -> list[Sample]:
    """List a split's samples by the files of its streams."""
    ids = sorted(filter(is_utf8, set().union(*files.values())))
    if not ids:
        raise ValueError(
            f"no image under {root / split} for the streams {_listed(list(files))}; expected "
            f"{LAYOUT} with a suffix of {', '.join(IMAGE_SUFFIXES)}"
        )
    cells = [
        {name: f"{split}/{name}/{i}{of[i].suffix}" for name, of in files.items() if i in of}
        for i in ids
    ]
    return [Sample(i, of, i.partition("/")[0], split) for i, of in zip(ids, cells, strict=True)]


def _known_classes(
    root: Path, samples: Mapping[str, Sequence[Sample]], classes: Sequence[str] | None
) -> list[str]:
    """Return the classes given, or those of the first split, of which the others have no more."""
    by_split = {split: sorted({x.label for x in of_split}) for split, of_split in samples.items()}
    first = next(iter(by_split))
    known = by_split[first] if classes is None else list(classes)
    for split, found in by_split.items():
        if unknown := [name for name in found if name not in known]:
            raise ValueError(
                f"{root / split} has classes that training lacks: {_listed(unknown)}; "
                f"expected only {_listed(known)}; remove them or add them to training"
            )
    if len(known) < 2:
        raise ValueError(
            f"{root / first} has one class only: {_listed(known)}; expected two or more"
        )
    return known


def _images_by_id(parent: Path) -> dict[str, Path]:
    """Return the images directly in a folder by the stems of their names; none without a folder.

    Raises:
        ValueError: if two files have the same stem.
    """
    files: dict[str, Path] = {}
    for file in sorted(parent.iterdir()) if parent.is_dir() else ():
        if file.suffix.lower() not in IMAGE_SUFFIXES or file.name.startswith("."):
            continue
        if file.stem in files:
            raise ValueError(
                f"two files claim one sample: {files[file.stem].name} and {file.name} "
                f"in {parent}; expected one file per id; remove or rename one"
            )
        files[file.stem] = file
    return files


def _subfolders(parent: Path) -> list[Path]:
    """Return the folders directly in a folder, sorted, but for names that begin with a dot."""
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
