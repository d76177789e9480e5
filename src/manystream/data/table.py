"""One table of samples: who has which image, and of which class, group and split each is.

Every data set becomes such a table, and what comes after (survey, checks, loader, prepared sets)
knows nothing else. A column holds what stands for a stream's images, a path or the number of a row,
and a storage that reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from manystream.data.image import UnreadableImageError
from manystream.data.splitting import TRAIN, TRAINVAL, VAL, HeldOut
from manystream.data.statistics import StreamStatistics
from manystream.data.streams import StreamSpec, numbers_of

Cell = Any
"""What stands for one image in its column: a path, the number of a row, …"""

Decode = Callable[[np.ndarray], np.ndarray]
"""From the values a file stores to those of the stream, both (H, W, C); its repr says all of it."""

Table = TypeVar("Table", bound="SampleTable")


class Storage(Protocol):
    """Where the images of a stream are kept: what a column's cells stand for."""

    @property
    def root(self) -> Path | None:
        """File or folder of the data set; None if it has none, and nothing is remembered of it."""
        ...

    def read(self, cell: Cell) -> np.ndarray:
        """Read one image as stored, (H, W, C), or raise :class:`UnreadableImageError`."""
        ...

    def path(self, cell: Cell) -> Path:
        """Return the file of an image, or what stands for it in messages."""
        ...

    def stamp(self, cell: Cell) -> Hashable:
        """Return what changes whenever the image may have changed."""
        ...


class Sample(NamedTuple):
    """One sample as an importer lists it.

    Attributes:
        id: a name for it.
        cells: what stands for its images, by the name of a stream; streams that it lacks may miss.
        label: name of its class; empty where nothing is labelled.
        split, group: as in :class:`SampleTable`; empty if unknown.
    """

    id: str
    cells: Mapping[str, Cell | None]
    label: str
    split: str = ""
    group: str = ""


@dataclass(frozen=True, eq=False)
class Column:
    """One stream of a table.

    Attributes:
        spec: the stream.
        storage: where its images are.
        cells: what stands for each sample's image there; None where the sample has none.
        decode: what is done to stored values; None leaves them.
        statistics: by the name of a split, those that are known without a look at its images.
    """

    spec: StreamSpec
    storage: Storage
    cells: Sequence[Cell | None] = ()
    decode: Decode | None = None
    statistics: dict[str, StreamStatistics] | None = None

    def read(self, cell: Cell) -> tuple[np.ndarray, str]:
        """Read an image, (H, W, C), and say in which dtype it is stored.

        Raises:
            UnreadableImageError: if it is missing or damaged, or cannot be decoded.
        """
        stored = self.storage.read(cell)
        try:
            return (stored if self.decode is None else self.decode(stored)), str(stored.dtype)
        except ValueError as error:
            raise UnreadableImageError(self.storage.path(cell), str(error)) from error


@dataclass(frozen=True, eq=False)
class SampleTable:
    """N samples of M streams. Nothing is decoded before :meth:`read`.

    Attributes:
        columns: one per stream, in the order of the model's inputs.
        classes: class names; a target is an index into them. None where nothing is labelled.
        ids: a name for each sample, used in messages and predictions.
        targets: class of each sample, shape (N,), int64.
        splits: name of the split that each sample is in.
        groups: recording or room that each sample shows, empty where it is unknown; None if that is
            known of none. Samples of one group look alike: no group may lie on both sides of a
            split.
        held_out: how val was held out of training; None if it was not.
        present: which streams each sample has, shape (N, M), bool; each has one or more.
    """

    columns: tuple[Column, ...]
    classes: tuple[str, ...]
    ids: Sequence[str]
    targets: Tensor
    splits: Sequence[str]
    groups: Sequence[str] | None = None
    held_out: HeldOut | None = None
    present: Tensor = field(init=False)

    def __post_init__(self) -> None:
        has = [[cell is not None for cell in column.cells] for column in self.columns]
        object.__setattr__(self, "present", torch.tensor(has, dtype=torch.bool).T.contiguous())
        if self.groups is not None and not any(self.groups):
            object.__setattr__(self, "groups", None)

    @classmethod
    def of(
        cls: type[Table],
        samples: Sequence[Sample],
        columns: Iterable[Column],
        classes: Sequence[str],
        held_out: HeldOut | None = None,
    ) -> Table:
        """Make a table of samples, with columns that have no cells yet.

        ``held_out`` is kept if there is a split val; without classes, targets are 0.
        """
        number = {name: i for i, name in enumerate(classes)} or {"": 0}
        return cls(
            tuple(
                replace(x, cells=[sample.cells.get(x.spec.name) for sample in samples])
                for x in columns
            ),
            tuple(classes),
            [sample.id for sample in samples],
            torch.tensor([number[sample.label] for sample in samples], dtype=torch.int64),
            [sample.split for sample in samples],
            [sample.group for sample in samples],
            held_out if any(sample.split == VAL for sample in samples) else None,
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def streams(self) -> tuple[StreamSpec, ...]:
        """The streams, in the order of the model's inputs."""
        return tuple(column.spec for column in self.columns)

    def read(self, index: int, stream: int) -> np.ndarray:
        """Read one image of a sample that has it, shape (H, W, C); uint8, uint16 or float32.

        Raises:
            ValueError: if the sample lacks that stream.
            UnreadableImageError: if the image is missing or damaged.
        """
        return self.columns[stream].read(self._cell(index, stream))[0]

    def path(self, index: int, stream: int) -> Path:
        """Return the file of an image that a sample has, or what stands for it in messages."""
        return self.columns[stream].storage.path(self._cell(index, stream))

    def labels(self) -> list[str]:
        """Return the name of each sample's class."""
        return [self.classes[target] for target in self.targets.tolist()]

    def rows(self, split: str) -> list[int]:
        """Return the numbers of the samples in a split; trainval is train and val together."""
        both = split == TRAINVAL and split not in self.splits
        names = (TRAIN, VAL) if both else (split,)
        return [i for i, name in enumerate(self.splits) if name in names]

    def part(self: Table, split: str) -> Table:
        """Return the samples of a split; trainval is train and val together.

        Raises:
            ValueError: if there are none.
        """
        rows = self.rows(split)
        if not rows:
            there = ", ".join(map(repr, dict.fromkeys(self.splits)))
            raise ValueError(f"split={split!r} has no samples; splits here: {there}")
        return self.select(rows)

    def select(self: Table, rows: Sequence[int]) -> Table:
        """Return some samples, by their numbers."""
        return replace(
            self,
            columns=tuple(replace(x, cells=[x.cells[i] for i in rows]) for x in self.columns),
            ids=[self.ids[i] for i in rows],
            targets=self.targets[list(rows)],
            splits=[self.splits[i] for i in rows],
            groups=None if self.groups is None else [self.groups[i] for i in rows],
        )

    def with_streams(self: Table, names: Sequence[str]) -> Table:
        """Return some streams in this order; samples that have none of them are left out.

        Raises:
            ValueError: if there is no stream of a name, or no sample is left.
        """
        columns = tuple(self.columns[m] for m in numbers_of(names, self.streams, "the data"))
        return replace(self, columns=columns).without_empty()

    def without(self: Table, images: Collection[tuple[int, int]]) -> Table:
        """Return the table with some images absent, each by its sample's and its stream's number.

        Samples left with none are left out; it is a ValueError if none is left.
        """
        columns = []
        for m, column in enumerate(self.columns):
            gone = {i for i, stream in images if stream == m}
            cells = [None if i in gone else cell for i, cell in enumerate(column.cells)]
            columns.append(replace(column, cells=cells))
        return replace(self, columns=tuple(columns)).without_empty()

    def without_empty(self: Table) -> Table:
        """Return the samples that have an image; it is a ValueError if there are none."""
        rows = self.present.any(dim=1).nonzero().flatten().tolist()
        if not rows:
            names = ", ".join(spec.name for spec in self.streams)
            raise ValueError(
                f"no readable image is left: all {len(self)} samples lack the streams {names}; "
                f"check {', '.join({str(c.storage.root or 'the data') for c in self.columns})}"
            )
        return self if len(rows) == len(self) else self.select(rows)

    def known_statistics(self, split: str) -> tuple[StreamStatistics, ...] | None:
        """Return each stream's statistics of a split; None if a look at the images is needed."""
        known = [(column.statistics or {}).get(split) for column in self.columns]
        return None if None in known else tuple(x for x in known if x is not None)

    def absences(self) -> dict[str, int]:
        """Count the samples that lack each stream, by the stream's name."""
        absent = (~self.present).sum(dim=0).tolist()
        return {spec.name: count for spec, count in zip(self.streams, absent, strict=True)}

    def summary(self) -> str:
        """Say how many samples there are, and how many lack each stream."""
        lacks = [
            f"{name} is missing in {count} ({count / len(self):.1%})"
            for name, count in self.absences().items()
            if count
        ]
        return f"{len(self)} samples; {'; '.join(lacks) or 'every stream present in all'}"

    def _cell(self, index: int, stream: int) -> Cell:
        column = self.columns[stream]
        cell = column.cells[index]
        if cell is None:
            raise ValueError(
                f"sample {self.ids[index]!r} has no stream {column.spec.name!r}; ask only where "
                "`present` is True"
            )
        return cell


class ArrayTable(SampleTable):
    """A table whose images are rows of arrays, so that those of many samples are read at once."""

    def read_many(self, indices: Sequence[int], stream: int, *, pinned: bool = False) -> Tensor:
        """Read a stream of samples that have it, (K, H, W, C), with the values as stored.

        Several threads may do so at a time; ``pinned`` memory is copied by a GPU itself.
        """
        cells = [self._cell(i, stream) for i in indices]
        storage: Any = self.columns[stream].storage
        return storage.read_many(cells, pinned=pinned)  # type: ignore[no-any-return]


def take_rows(array: np.ndarray, rows: np.ndarray, *, pinned: bool = False) -> Tensor:
    """Copy rows of an array into one tensor, (K, *array.shape[1:]), page-locked if asked."""
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    images = torch.empty((len(rows), *array.shape[1:]), dtype=dtype, pin_memory=pinned)
    if array.flags.c_contiguous:
        # Any other mode fills a copy of the result first, in case a number is out of bounds.
        np.take(array, rows, axis=0, out=images.numpy(), mode="clip")
    else:  # of such a view, a channel of all images for one, take would copy the whole
        images.numpy()[...] = array[rows]
    return images
