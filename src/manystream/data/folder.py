"""A data set kept as folders: ``root/<split>/<stream>/<class>/<id>.<ext>``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from manystream.data.image import IMAGE_SUFFIXES, read_image
from manystream.data.source import StreamSpec

LAYOUT = "root/<split>/<stream>/<class>/<id>.<ext>"
"""Where an image of a data set is, as messages show it."""


class FolderSource:
    """Samples in folders; a sample is a class and an id, whichever streams have a file for it.

    Files other than images and names that begin with a dot are passed over. Nothing is decoded
    until :meth:`read`.

    Args:
        root: the data set's folder.
        split: the folder of this split, for example ``"train"``.
        streams: the streams in the order of the model's inputs; each has a folder in the split.
        classes: the training split's classes. Left out, they are the sorted names found here.

    Attributes:
        root, split, streams, classes: as given or found.
        ids: ``"class/id"`` of each of the N samples, sorted.
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
    ) -> None:
        self.root = Path(root)
        self.split = split
        self.streams = tuple(streams)
        folder = split_folder(self.root, split)
        suffixes = [_scan_stream(stream_folder(folder, spec.name)) for spec in self.streams]
        ids = sorted(set().union(*suffixes))
        _check_not_empty(ids, folder, self.streams)
        self.classes = _resolve_classes(ids, classes, folder)
        target = {name: number for number, name in enumerate(self.classes)}
        self._fill(
            [_Sample(i, target[_class_of(i)], tuple(s.get(i) for s in suffixes)) for i in ids]
        )

    def path(self, index: int, stream: int) -> Path:
        """File of one image.

        Raises:
            ValueError: if the sample lacks that stream.
        """
        sample, name = self._samples[index], self.streams[stream].name
        suffix = sample.suffixes[stream]
        if suffix is None:
            raise ValueError(
                f"sample {sample.id!r} has no stream {name!r}; ask only where `present` is True"
            )
        return self.root / self.split / name / f"{sample.id}{suffix}"

    def read(self, index: int, stream: int) -> np.ndarray:
        """Read one raw image.

        Returns:
            Shape (H, W, C); uint8, uint16 or float32, with the values as stored.

        Raises:
            UnreadableImageError: if the file is missing or damaged.
        """
        return read_image(self.path(index, stream))

    def without(self, unreadable: AbstractSet[Path]) -> FolderSource:
        """Copy in which these files are absent; samples left with no stream are dropped.

        Args:
            unreadable: paths as :meth:`path` gives them, of any split.

        Raises:
            ValueError: if no sample is left.
        """
        samples = [self._without(index, unreadable) for index in range(len(self._samples))]
        kept = [sample for sample in samples if any(sample.suffixes)]
        if not kept:
            raise ValueError(
                f"no readable image is left in {self.root / self.split}: "
                f"all {len(self._samples)} samples are unreadable; check the files"
            )
        remaining = copy.copy(self)
        remaining._fill(kept)
        return remaining

    def _without(self, index: int, unreadable: AbstractSet[Path]) -> _Sample:
        sample = self._samples[index]
        suffixes = tuple(
            None if suffix is None or self.path(index, stream) in unreadable else suffix
            for stream, suffix in enumerate(sample.suffixes)
        )
        return sample._replace(suffixes=suffixes)

    def _fill(self, samples: list[_Sample]) -> None:
        self._samples = samples
        self.ids = [sample.id for sample in samples]
        self.targets = torch.tensor([sample.target for sample in samples])
        self.present = torch.tensor([[s is not None for s in x.suffixes] for x in samples])


class _Sample(NamedTuple):
    """A sample's ``class/id``, its target, and the suffix of its file in each stream."""

    id: str
    target: int
    suffixes: tuple[str | None, ...]


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
