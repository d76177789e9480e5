"""A prepared set as a table: images are rows of memory-mapped arrays, read without any decoding."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from manystream.data.image import UnreadableImageError
from manystream.data.prepared.arrays import checksum, map_array
from manystream.data.prepared.layout import (
    PARTIAL_SUFFIX,
    SplitIndex,
    StreamArray,
    read_index,
    read_marker,
)
from manystream.data.streams import StreamSpec, names_of, numbers_of
from manystream.data.table import ArrayTable, Column, take_rows


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
    parts = [_Part.open(root, split) for split in splits or read_marker(root)]
    classes = tuple(classes or parts[0].content.classes)
    names = names_of(streams, parts[0].specs)
    has = [part.present(names) for part in parts]
    for part, of_part in zip(parts, has, strict=True):
        if not of_part.any():
            raise ValueError(f"no sample of {part.folder} has any of: {', '.join(names)}")
    columns = tuple(_column(name, parts) for name in names)
    groups = [part.content.groups or [""] * len(part.content.ids) for part in parts]
    table = ArrayTable(
        columns,
        classes,
        [i for part in parts for i in part.content.ids],
        torch.tensor([target for part in parts for target in part.targets(classes)]),
        [part.content.split for part in parts for _ in part.content.ids],
        [group for of_part in groups for group in of_part],
    ).without_empty()
    if verify:
        for column in columns:
            column.storage.verify()  # type: ignore[attr-defined]
    return table


class _Part(NamedTuple):
    """One split: its folder, its index, and the CRC-32 of every row of every stream."""

    folder: Path
    content: SplitIndex
    checksums: list[np.ndarray]

    @classmethod
    def open(cls, root: Path, split: str) -> _Part:
        folder = _finished(root, split)
        index, checksums = read_index(folder)
        if index.split != split:
            raise ValueError(
                f"{folder} was written as split {index.split!r}; give folders of a prepared set "
                "their own names back"
            )
        return cls(folder, index, checksums)

    @property
    def specs(self) -> list[StreamSpec]:
        return [array.spec for array in self.content.streams]

    def number(self, name: str) -> int:
        return numbers_of([name], self.specs, self.folder)[0]

    def present(self, names: Sequence[str]) -> np.ndarray:
        numbers = [self.number(name) for name in names]
        return np.array(self.content.present, bool)[:, numbers]

    def targets(self, classes: Sequence[str]) -> list[int]:
        """Return the targets as numbers of ``classes``."""
        names = [self.content.classes[target] for target in self.content.targets]
        if unknown := sorted(set(names) - set(classes)):
            raise ValueError(
                f"{self.folder} has classes that training lacks: {', '.join(unknown)}; "
                f"expected only {', '.join(classes)}"
            )
        number = {name: target for target, name in enumerate(classes)}
        return [number[name] for name in names]


def _column(name: str, parts: Sequence[_Part]) -> Column:
    files, cells, first = [], [], 0
    spec = parts[0].specs[parts[0].number(name)]
    for part in parts:
        m = part.number(name)
        array = part.content.streams[m]
        if array.spec != spec:
            raise ValueError(f"{part.folder} holds {array.spec}, {parts[0].folder} {spec}")
        files.append(_MappedFile(part.content.files(part.folder)[m], array, part.checksums[m]))
        has = np.array(part.content.present, bool)[:, m]
        rows = (first + np.cumsum(has) - 1).tolist()
        cells += [row if here else None for row, here in zip(rows, has, strict=True)]
        first += array.shape[0]
    known = {
        part.content.split: part.content.streams[part.number(name)].statistics for part in parts
    }
    return Column(spec, _Rows(files), cells, statistics=known)


class _MappedFile:
    """The file of one stream and split, whose rows are compared with their checksums once."""

    def __init__(self, path: Path, array: StreamArray, checksums: np.ndarray) -> None:
        self.path = path
        self.array = array
        self.checksums = checksums
        self._map()

    def __len__(self) -> int:
        return self.array.shape[0]

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

    def __getstate__(self) -> dict[str, Any]:
        # A pickled map would hold every pixel; a worker maps the file itself.
        return {name: value for name, value in vars(self).items() if name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    def _map(self) -> None:
        self._mapped = map_array(self.path, self.array)
        self._intact = np.zeros(len(self._mapped), bool)


class _Rows:
    """One stream's rows in the files of several splits; a cell counts through all of them."""

    root = None  # Nothing is kept of a look at it: what has decayed since is to be found.

    def __init__(self, files: Sequence[_MappedFile]) -> None:
        self.files = files
        self.firsts = np.cumsum([0, *map(len, files)])[:-1]

    def read(self, cell: int) -> np.ndarray:
        """Return one image as stored, (H, W, C), read-only."""
        file, row = self._find(cell)
        image: np.ndarray = file.checked(np.array([row]))[row]
        return image

    def read_many(self, cells: Sequence[int], *, pinned: bool = False) -> Tensor:
        rows = np.asarray(cells, np.int64)
        of_file = np.searchsorted(self.firsts, rows, "right") - 1
        if (of_file != of_file[0]).any():
            return torch.stack([torch.from_numpy(self.read(cell).copy()) for cell in cells])
        inside = rows - self.firsts[of_file[0]]
        return take_rows(self.files[of_file[0]].checked(inside), inside, pinned=pinned)

    def path(self, cell: int) -> Path:
        file, row = self._find(cell)
        return file.path / str(row)

    def stamp(self, cell: int) -> Hashable:
        file, row = self._find(cell)
        return int(file.checksums[row])

    def verify(self) -> None:
        """Compare every row with its checksum."""
        for file in self.files:
            file.checked(np.arange(len(file)))

    def _find(self, cell: int) -> tuple[_MappedFile, int]:
        number = int(np.searchsorted(self.firsts, cell, "right")) - 1
        return self.files[number], cell - int(self.firsts[number])


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
