"""A split of a prepared set, read from memory-mapped arrays without any decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manystream.data.image import UnreadableImageError
from manystream.data.prepared.arrays import checksum, map_array
from manystream.data.prepared.layout import (
    PARTIAL_SUFFIX,
    SplitIndex,
    read_index,
    read_marker,
)
from manystream.data.sources.wanted import Wanted


class PreparedSource:
    """One split of a prepared set.

    Opening compares the index with its checksum and every file's length, dtype and shape with the
    index. Each row is compared with its own checksum when this process reads it first.

    Args:
        root: folder that `manystream prepare` wrote.
        split: name of the split.
        streams: names of the streams to use, in order; all by default. Samples that have none of
            them are left out.
        classes: the training split's classes; those of this split by default.
        verify: compare every row with its checksum now.

    Attributes:
        root, split, streams, classes: as given or found.
        ids, targets, present, groups: of the samples, as the source had them.
        statistics: mean and standard deviation of each stream of the source.

    Raises:
        ValueError: if the split was never finished, is damaged or another one, or lacks a stream or
            class.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        streams: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        *,
        verify: bool = False,
    ) -> None:
        self.root, self.split = Path(root), split
        index, checksums = read_index(_finished(self.root, split))
        if index.split != split:
            raise ValueError(
                f"{self.root / split} was written as split {index.split!r}; give folders of a "
                "prepared set their own names back"
            )
        numbers = _stream_numbers(index, streams, self.root / split)
        self._arrays = [index.streams[m] for m in numbers]
        self._files = [index.files(self.root / split)[m] for m in numbers]
        self._checksums = [checksums[m] for m in numbers]
        self._map()
        self.streams = tuple(array.spec for array in self._arrays)
        self.statistics = tuple(array.statistics for array in self._arrays)
        self._select_samples(index, numbers, classes)
        if verify:
            self._verify()

    def read(self, index: int, stream: int) -> np.ndarray:
        """One image as stored, shape (H, W, C), read-only.

        Raises:
            UnreadableImageError: if its bytes are not those that were written.
        """
        row = int(self._rows[stream][index])
        self._check_rows(stream, np.array([row]))
        image: np.ndarray = self._mapped[stream][row]
        return image

    def read_many(self, indices: Sequence[int], stream: int, *, pinned: bool = False) -> Tensor:
        """Images of several samples at once, shape (K, H, W, C).

        Args:
            indices: numbers of the samples, which all have the stream.
            stream: number of the stream.
            pinned: whether to read into page-locked memory.

        Raises:
            UnreadableImageError: as :meth:`read`.
        """
        rows = self._rows[stream][np.asarray(indices, np.int64)]
        self._check_rows(stream, rows)
        mapped = self._mapped[stream]
        dtype = torch.from_numpy(np.empty(0, mapped.dtype)).dtype
        images = torch.empty((len(rows), *mapped.shape[1:]), dtype=dtype, pin_memory=pinned)
        # Any other mode fills a copy of the result first, in case a number is out of bounds.
        np.take(mapped, rows, axis=0, out=images.numpy(), mode="clip")
        return images

    def path(self, index: int, stream: int) -> Path:
        """The stream's file and the sample's name, for messages."""
        return self._files[stream] / self.ids[index]

    def __getstate__(self) -> dict[str, Any]:
        # A pickled map would hold every pixel; a worker maps the files itself.
        return {name: value for name, value in vars(self).items() if name != "_mapped"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    def _map(self) -> None:
        pairs = zip(self._files, self._arrays, strict=True)
        self._mapped = [map_array(file, array) for file, array in pairs]
        self._intact = [np.zeros(len(mapped), bool) for mapped in self._mapped]

    def _select_samples(
        self, index: SplitIndex, numbers: Sequence[int], classes: Sequence[str] | None
    ) -> None:
        present = np.array(index.present, bool)[:, numbers]
        chosen = np.flatnonzero(present.any(axis=1))
        if not len(chosen):
            names = ", ".join(spec.name for spec in self.streams)
            raise ValueError(f"no sample of {self.root / self.split} has any of: {names}")
        # Row of each sample in its stream's array, counted before samples are left out.
        self._rows = [(np.cumsum(has) - 1)[chosen] for has in present.T]
        self.present = torch.from_numpy(present[chosen])
        self.ids = [index.ids[i] for i in chosen]
        self.groups = None if index.groups is None else [index.groups[i] for i in chosen]
        self.classes = tuple(index.classes if classes is None else classes)
        targets = _translated(index, self.classes, self.root / self.split)
        self.targets = torch.tensor([targets[i] for i in chosen])

    def _check_rows(self, stream: int, rows: np.ndarray) -> None:
        for row in rows[~self._intact[stream][rows]].tolist():
            if checksum(self._mapped[stream][row]) != self._checksums[stream][row]:
                raise UnreadableImageError(
                    self._files[stream],
                    f"row {row} is not what was written; remove {self.root / self.split} and run "
                    "`manystream prepare` again",
                )
        self._intact[stream][rows] = True

    def _verify(self) -> None:
        for stream, mapped in enumerate(self._mapped):
            self._check_rows(stream, np.arange(len(mapped)))


def open_prepared(wanted: Wanted) -> PreparedSource:
    """Open a split as the options say."""
    wanted.without_hints()
    verify = wanted.options.verify
    return PreparedSource(wanted.root, wanted.split, wanted.names, wanted.classes, verify=verify)


def _finished(root: Path, split: str) -> Path:
    splits = read_marker(root)
    if split not in splits:
        raise ValueError(f"split {split!r} is not in {root}; splits there: {', '.join(splits)}")
    if not (root / split).is_dir():
        what = "interrupted" if (root / (split + PARTIAL_SUFFIX)).is_dir() else "not written"
        raise ValueError(
            f"split {split!r} of the prepared set {root} was {what}; finish it by running the same "
            "`manystream prepare` again"
        )
    return root / split


def _stream_numbers(index: SplitIndex, names: Sequence[str] | None, folder: Path) -> list[int]:
    available = [array.spec.name for array in index.streams]
    return list(_numbers(available if names is None else names, available, folder))


def _numbers(names: Sequence[str], available: Sequence[str], folder: Path) -> Iterator[int]:
    for name in names:
        if name not in available:
            raise ValueError(f"no stream {name!r} in {folder}; it has {', '.join(available)}")
        yield available.index(name)


def _translated(index: SplitIndex, classes: Sequence[str], folder: Path) -> list[int]:
    """Targets as numbers of ``classes``."""
    names = [index.classes[target] for target in index.targets]
    if unknown := sorted(set(names) - set(classes)):
        raise ValueError(
            f"{folder} has classes that training lacks: {', '.join(unknown)}; "
            f"expected only {', '.join(classes)}"
        )
    number = {name: target for target, name in enumerate(classes)}
    return [number[name] for name in names]
