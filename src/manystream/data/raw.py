"""Batches as stored: read by whole batches, prepared later where there is time for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from manystream.data.augmentation import Draw, pixels
from manystream.data.dataset import SampleKey
from manystream.data.table import SampleTable as Source
from manystream.data.transforms import Transform, sample_rng
from manystream.presence import Presence

Size = tuple[int, int]


@runtime_checkable
class BatchReader(Protocol):
    """A source that reads a stream of many samples at once."""

    def read_many(self, indices: Sequence[int], stream: int, *, pinned: bool = False) -> Tensor:
        """Read a stream of some samples; several threads may do so at a time.

        Args:
            indices: numbers of the samples, which all have the stream.
            stream: number of the stream.
            pinned: whether to read into page-locked memory, which a GPU copies by itself.

        Returns:
            Shape (K, H, W, C), with the values as stored.
        """
        ...


@dataclass(frozen=True, eq=False)
class RawBatch:
    """Images as stored, and what was drawn for them.

    Attributes:
        images: the present rows of each stream, shape (B_m, H, W, C), in their stored dtype and in
            sorted order; images smaller than the others are filled up at the bottom and right.
        frames: where each image is to be cut, and whether it is to be flipped, shape (B_m, 5):
            top, bottom, left, right, 0 or 1; None where all are taken as they are.
        draws: what was drawn for each sample, in the caller's order.
        presence: who has which stream.
        target: class of each sample, shape (B,), in the caller's order.
        ids: name of each sample, in the caller's order, for messages.
    """

    images: tuple[Tensor, ...]
    frames: tuple[Tensor | None, ...]
    draws: tuple[Draw, ...]
    presence: Presence
    target: Tensor
    ids: tuple[str, ...]

    def to(self, device: torch.device) -> RawBatch:
        """Bring images, frames and target to a device, without waiting for it."""
        return replace(
            self,
            images=tuple(x.to(device, non_blocking=True) for x in self.images),
            frames=tuple(
                None if x is None else x.to(device, non_blocking=True) for x in self.frames
            ),
            target=self.target.to(device, non_blocking=True),
        )

    def pin_memory(self) -> RawBatch:
        """Move images, frames and target to page-locked memory."""
        return replace(
            self,
            images=tuple(x.pin_memory() for x in self.images),
            frames=tuple(None if x is None else x.pin_memory() for x in self.frames),
            target=self.target.pin_memory(),
        )


class RawDataset(Dataset[RawBatch]):
    """A source read by whole batches; a blanked or absent image is never read.

    Args:
        source: where images come from; :class:`BatchReader` sources are read a stream at a time.
        transform: what draws, and knows the size that images are to have.
        seed: with epoch and sample number, the seed of a sample's augmentation.
        pinned: whether to read into page-locked memory, which a worker process cannot share.
    """

    def __init__(
        self, source: Source, transform: Transform, seed: int = 0, *, pinned: bool = False
    ) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed
        self.pinned = pinned

    def __len__(self) -> int:
        return len(self.source.targets)

    def __getitem__(self, key: SampleKey) -> RawBatch:
        """Read a batch of one sample."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[SampleKey]) -> RawBatch:
        """Read a batch; DataLoader calls this with what the sampler asks for."""
        indices = torch.tensor([key.index for key in keys])
        kept = torch.tensor([key.kept for key in keys]) & self.source.present[indices]
        presence = Presence.from_mask(kept)
        rows = [presence.samples(m) for m in range(presence.num_streams)]
        read = [self._read(indices[samples].tolist(), m) for m, samples in enumerate(rows)]
        draws = self._draw(keys, rows, [sizes for _, sizes in read])
        frames = [
            _frames([draws[b] for b in samples.tolist()], sizes)
            for samples, (_, sizes) in zip(rows, read, strict=True)
        ]
        size = self.transform.preprocessing.size
        batch = RawBatch(
            tuple(images for images, _ in read),
            tuple(None if _is_plain(x, size) else x for x in frames),
            draws,
            presence,
            self.source.targets[indices],
            tuple(self.source.ids[key.index] for key in keys),
        )
        return batch.pin_memory() if self.pinned else batch

    def _read(self, indices: Sequence[int], stream: int) -> tuple[Tensor, list[Size]]:
        spec = self.source.streams[stream]
        if not indices:
            return torch.empty((0, 1, 1, spec.channels), dtype=torch.uint8), []
        if isinstance(self.source, BatchReader):
            images = self.source.read_many(indices, stream, pinned=self.pinned)
            sizes = [(images.shape[1], images.shape[2])] * len(images)
        else:
            images, sizes = _padded([self.source.read(index, stream) for index in indices])
        if images.shape[-1] != spec.channels:
            raise ValueError(
                f"images of stream {spec.name!r} have {images.shape[-1]} channels; "
                f"expected {spec.channels}"
            )
        return images, sizes

    def _draw(
        self, keys: Sequence[SampleKey], rows: Sequence[Tensor], sizes: Sequence[Sequence[Size]]
    ) -> tuple[Draw, ...]:
        """Draw for each sample, from the sizes of the images that it has."""
        of_sample: list[list[Size]] = [[] for _ in keys]
        for samples, of_stream in zip(rows, sizes, strict=True):
            for sample, size in zip(samples.tolist(), of_stream, strict=True):
                of_sample[sample].append(size)
        return tuple(
            self.transform.draw(has, sample_rng(self.seed, key.epoch, key.index))
            for key, has in zip(keys, of_sample, strict=True)
        )


def as_read(batch: RawBatch) -> RawBatch:
    """Collate nothing: a batch was read as one."""
    return batch


def _padded(images: Sequence[np.ndarray]) -> tuple[Tensor, list[Size]]:
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    if len(set(sizes)) == 1:
        return torch.from_numpy(np.stack(images)), sizes
    height, width = np.max(sizes, axis=0)
    padded = np.zeros((len(images), height, width, images[0].shape[2]), images[0].dtype)
    for place, image in zip(padded, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return torch.from_numpy(padded), sizes


def _frames(draws: Sequence[Draw], sizes: Sequence[Size]) -> Tensor:
    frames = [
        (*pixels(drawn.rows, height), *pixels(drawn.columns, width), int(drawn.flipped))
        for drawn, (height, width) in zip(draws, sizes, strict=True)
    ]
    return torch.tensor(frames).view(-1, 5)


def _is_plain(frames: Tensor, size: Size) -> bool:
    """Whether every image is as large as it is to be, uncut and unflipped."""
    return bool((frames == torch.tensor([0, size[0], 0, size[1], 0])).all())
