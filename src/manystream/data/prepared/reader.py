"""A prepared set as a table: images are rows of memory-mapped arrays, read without any decoding."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from manystream.data.image import UnreadableImageError
from manystream.data.prepared.layout import (
    PARTIAL_SUFFIX,
    Index,
    StreamArray,
    arrays_of,
    checksum,
    read_index,
    read_marker,
)
from manystream.data.statistics import StreamStatistics
from manystream.data.streams import StreamSpec, names_of, numbers_of
from manystream.data.table import ArrayTable, Column, Sample, take_rows


def prepared(
    root: str | Path,
    *,
    splits: Sequence[str] | None = None,
    streams: Sequence[str | StreamSpec] | None = None,
    classes: Sequence[str] | None = None,
    verify: bool = False,
) -> ArrayTable:
    """List the samples of a set that ``manystream prepare`` wrote.

    Opening compares the index with its checksum and every file's length, dtype and shape with the
    index. Each row is compared with its own checksum when this process reads it first.

    Args:
        root: the set's folder.
        splits: those to list, the one to train on first; all by default.
        streams: streams to use, in order; all by default. Samples that have none are left out.
        classes: those that a model was trained on; those of the first split by default.
        verify: compare every row with its checksum now.

    Raises:
        ValueError: if a split was never finished, is damaged or another one, or lacks a stream or
            class.
    """
    root = Path(root)
    folders = [_finished(root, split) for split in splits or read_marker(root)]
    indices = [read_index(folder) for folder in folders]
    arrays = [arrays_of(index) for index in indices]
    classes = tuple(classes or indices[0]["classes"])
    names = names_of(streams, [array.spec for array in arrays[0]])
    files: dict[str, list[_MappedFile]] = {name: [] for name in names}
    known: dict[str, dict[str, StreamStatistics]] = {name: {} for name in names}
    samples: list[Sample] = []
    for part, (folder, index) in enumerate(zip(folders, indices, strict=True)):
        numbers = numbers_of(names, [array.spec for array in arrays[part]], folder)
        samples += _samples(part, index, dict(zip(names, numbers, strict=True)), classes, folder)
        for name, m in zip(names, numbers, strict=True):
            array, sums = arrays[part][m], np.array(index["checksums"][m], np.uint32)
            files[name].append(_MappedFile(array.path(folder, m), array, sums))
            known[name][index["split"]] = array.statistics
            if (spec := files[name][0].array.spec) != array.spec:
                raise ValueError(f"{folder} holds {array.spec}, {folders[0]} {spec}")
    if verify:
        for file in itertools.chain(*files.values()):
            file.checked(np.arange(file.array.shape[0]))
    columns = [
        Column(of[0].array.spec, _Rows(of), statistics=known[name]) for name, of in files.items()
    ]
    return ArrayTable.of(samples, columns, classes).without_empty()


def _samples(
    part: int, index: Index, numbers: Mapping[str, int], classes: Sequence[str], folder: Path
) -> list[Sample]:
    """List the samples of a split; a cell is the number of this part and a row of its file.

    ``numbers`` are those of the streams that are used, ``classes`` the only ones that there may be.
    """
    present = np.array([list(map(int, word)) for word in index["present"]], bool)
    if not present[:, list(numbers.values())].any():
        raise ValueError(f"no sample of {folder} has any of: {', '.join(numbers)}")
    labels = [index["classes"][target] for target in index["targets"]]
    if unknown := sorted(set(labels) - set(classes)):
        raise ValueError(
            f"{folder} has classes that training lacks: {', '.join(unknown)}; "
            f"expected only {', '.join(classes)}"
        )
    rows = (np.cumsum(present, axis=0) - 1).tolist()
    cells = [
        {name: (part, of[m]) for name, m in numbers.items() if has[m]}
        for of, has in zip(rows, present, strict=True)
    ]
    groups, splits = index["groups"] or [""] * len(labels), [index["split"]] * len(labels)
    return list(map(Sample, index["ids"], cells, labels, splits, groups))


def _finished(root: Path, split: str) -> Path:
    splits = read_marker(root)
    if split not in splits:
        raise ValueError(f"split {split!r} is not in {root}; splits there: {', '.join(splits)}")
    if not (root / split).is_dir():
        what = "interrupted" if (root / (split + PARTIAL_SUFFIX)).is_dir() else "not written"
        raise ValueError(
            f"split {split!r} of the prepared set {root} was {what}; run the same "
            "`manystream prepare` again"
        )
    return root / split


class _MappedFile:
    """The file of one stream and split, whose rows are compared with their checksums once."""

    def __init__(self, path: Path, array: StreamArray, checksums: np.ndarray) -> None:
        self.path = path
        self.array = array
        self.checksums = checksums
        self._mapped = array.map(path)
        self._intact = np.zeros(len(self._mapped), bool)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        # A pickled map would hold every pixel; a worker maps the file itself.
        return _MappedFile, (self.path, self.array, self.checksums)

    def checked(self, rows: np.ndarray) -> np.ndarray:
        """Return all rows, of which some have been compared with their checksums.

        Raises:
            UnreadableImageError: if the bytes of one are not those that were written.
        """
        for row in rows[~self._intact[rows]].tolist():
            if checksum(self._mapped[row]) != self.checksums[row]:
                raise UnreadableImageError(
                    self.path,
                    f"row {row} is not what was written; remove {self.path.parent} and run "
                    "`manystream prepare` again",
                )
        self._intact[rows] = True
        return self._mapped


@dataclass(frozen=True, eq=False)
class _Rows:
    """One stream's rows in the files of several splits; a cell is a file's number and a row."""

    files: Sequence[_MappedFile]
    root: None = None  # Nothing is kept of a look at it: what has decayed since is to be found.

    def read(self, cell: tuple[int, int]) -> np.ndarray:
        """Return one image as stored, (H, W, C), read-only."""
        file, row = cell
        image: np.ndarray = self.files[file].checked(np.array([row]))[row]
        return image

    def read_many(self, cells: Sequence[tuple[int, int]], *, pinned: bool = False) -> Tensor:
        files, rows = np.array(cells).T
        if (files != files[0]).any():
            return torch.stack([torch.from_numpy(self.read(cell).copy()) for cell in cells])
        return take_rows(self.files[files[0]].checked(rows), rows, pinned=pinned)

    def path(self, cell: tuple[int, int]) -> Path:
        file, row = cell
        return self.files[file].path / str(row)

    def stamp(self, cell: tuple[int, int]) -> Hashable:
        file, row = cell
        return int(self.files[file].checksums[row])
