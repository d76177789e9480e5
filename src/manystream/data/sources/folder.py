"""A data set kept as folders: ``root/<split>/<stream>/<class>/<id>.<ext>``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from manystream.data.image import IMAGE_SUFFIXES, MAX_PIXELS
from manystream.data.problems import Problem, Settle, is_utf8, refuse
from manystream.data.source import StreamSpec
from manystream.data.sources.files import Decode, FileSample, FileSource

LAYOUT = "root/<split>/<stream>/<class>/<id>.<ext>"
"""Where an image of a data set is, as messages show it."""


class FolderSource(FileSource):
    """Samples in folders; a sample is a class and an id, whichever streams have a file for it.

    Files other than images and names that begin with a dot are passed over. Nothing is decoded
    until :meth:`read`.

    Args:
        root: the data set's folder.
        split: the folder of this split, for example ``"train"``.
        streams: the streams in the order of the model's inputs; each has a folder in the split.
        classes: the training split's classes. Left out, they are the sorted names found here.
        decode: as in :class:`FileSource`.
        max_pixels: as in :class:`FileSource`.
        settle: told of names that are not UTF-8; what has one is left out if it returns.

    Attributes:
        root, name, streams, classes: as given or found; ``name`` is the split.
        ids: ``"class/id"`` of each of the N samples, sorted.
        groups: None, folders do not tell.
        targets: class of each sample, shape (N,), int64.
        present: which streams have a file, shape (N, M), bool.

    Raises:
        ValueError: if a folder is missing or empty, a class is unknown, there are fewer than two
            classes, or an id has two files in one stream.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        streams: Sequence[StreamSpec],
        classes: Sequence[str] | None = None,
        *,
        decode: Mapping[str, Decode] | None = None,
        max_pixels: int = MAX_PIXELS,
        settle: Settle = refuse,
    ) -> None:
        folder = split_folder(Path(root), split)
        settle(_names_not_utf8(folder))
        suffixes = {spec.name: _scan_stream(stream_folder(folder, spec.name)) for spec in streams}
        ids = sorted(filter(is_utf8, set().union(*suffixes.values())))
        _check_not_empty(ids, folder, streams)
        known = _resolve_classes(ids, classes, folder)
        target = {name: number for number, name in enumerate(known)}
        samples = [FileSample(i, target[_class_of(i)], _files_of(i, split, suffixes)) for i in ids]
        super().__init__(
            Path(root), split, streams, known, samples, decode=decode, max_pixels=max_pixels
        )


def _files_of(
    sample_id: str, split: str, suffixes: Mapping[str, Mapping[str, str]]
) -> tuple[str | None, ...]:
    return tuple(
        f"{split}/{stream}/{sample_id}{found[sample_id]}" if sample_id in found else None
        for stream, found in suffixes.items()
    )


def _names_not_utf8(folder: Path) -> list[Problem]:
    """Images whose file or class has a name that reports, predictions and caches cannot hold."""
    return [
        Problem(str(file), "its name is not UTF-8; rename it")
        for stream in subfolders(folder)
        for class_folder in subfolders(stream)
        for file in sorted(class_folder.iterdir())
        if _is_image(file) and not is_utf8(f"{class_folder.name}/{file.name}")
    ]


def available_splits(root: str | Path) -> tuple[str, ...]:
    """Names of the splits below a data set's folder, sorted.

    Raises:
        ValueError: if ``root`` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"root={str(root)!r} is not a folder; expected one laid out as {LAYOUT}")
    return tuple(folder.name for folder in subfolders(root))


def split_folder(root: Path, split: str) -> Path:
    """Folder of a split.

    Raises:
        ValueError: if ``root`` or the split is not a folder.
    """
    splits = available_splits(root)
    if not (root / split).is_dir():
        raise ValueError(f"split={split!r} is not in {root}; splits there: {_listed(splits)}")
    return root / split


def stream_folder(parent: Path, name: str) -> Path:
    """Folder of a stream in a split's folder ``parent``.

    Raises:
        ValueError: if there is none.
    """
    if not (parent / name).is_dir():
        found = _listed([folder.name for folder in subfolders(parent)])
        raise ValueError(
            f"stream {name!r} has no folder in {parent}; folders there: {found}; "
            "if the split truly lacks this stream, make an empty folder of that name"
        )
    return parent / name


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in a folder, sorted; names that begin with a dot are passed over."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")


def image_files_by_id(folder: Path) -> dict[str, Path]:
    """Images directly in a folder, by the stems of their names; none if there is no folder.

    Raises:
        ValueError: if two files have the same stem.
    """
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not _is_image(file):
            continue
        if file.stem in files:
            raise ValueError(
                f"two files claim one sample: {files[file.stem].name} and {file.name} "
                f"in {folder}; expected one file per id; remove or rename one"
            )
        files[file.stem] = file
    return files


def _scan_stream(folder: Path) -> dict[str, str]:
    """Suffix of the file of every ``class/id`` of one stream."""
    return {
        f"{class_folder.name}/{stem}": file.suffix
        for class_folder in subfolders(folder)
        for stem, file in image_files_by_id(class_folder).items()
    }


def _class_of(sample_id: str) -> str:
    return sample_id.partition("/")[0]


def _check_not_empty(ids: list[str], folder: Path, streams: Sequence[StreamSpec]) -> None:
    if not ids:
        names = _listed([spec.name for spec in streams])
        raise ValueError(
            f"no image under {folder} for the streams {names}; expected {LAYOUT} "
            f"with a suffix of {', '.join(IMAGE_SUFFIXES)}"
        )


def _resolve_classes(
    ids: list[str], classes: Sequence[str] | None, folder: Path
) -> tuple[str, ...]:
    found = sorted({_class_of(sample_id) for sample_id in ids})
    known = tuple(found if classes is None else classes)
    if unknown := [name for name in found if name not in known]:
        raise ValueError(
            f"{folder} has classes that training lacks: {_listed(unknown)}; "
            f"expected only {_listed(known)}; remove them or add them to training"
        )
    if len(known) < 2:
        raise ValueError(f"{folder} has one class only: {_listed(known)}; expected two or more")
    return known


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
