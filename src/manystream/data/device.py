"""Prepare whole batches on the device that trains: cut, resize, augment and normalise.

What is drawn at random has been drawn on the host, sample by sample, so it is the same here as in
:mod:`manystream.data.transforms`; values agree to rounding, of 8-bit images to one level.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from manystream.batch import StreamBatch
from manystream.data.ahead import read_ahead
from manystream.data.preprocessing import Preprocessing, normalise
from manystream.data.raw import RawBatch, RawDataset, as_read
from manystream.data.resampling import crop_nearest, crop_resize
from manystream.data.streams import StreamSpec
from manystream.data.transforms import photometric

# Rows prepared at once. Fewer would take longer to launch than to run; what they need in between is
# gone before the network needs its memory.
_ROWS_AT_ONCE = 128


class DeviceLoader(DataLoader[StreamBatch]):
    """Reads batches as stored, copies them to a device, and prepares them there.

    Args:
        dataset: what to read.
        device: where to prepare; without a number, the current device of its kind.
        num_threads: threads of this process that read ahead; 0 leaves reading to DataLoader.
        arguments: of ``torch.utils.data.DataLoader``; with threads, no ``num_workers``.
    """

    def __init__(
        self, dataset: RawDataset, device: torch.device, *, num_threads: int = 0, **arguments: Any
    ) -> None:
        super().__init__(dataset, collate_fn=as_read, **arguments)  # type: ignore[arg-type]
        self.device = device
        self.num_threads = num_threads
        self.preprocessing = dataset.transform.preprocessing
        self._read_batch = dataset.__getitems__
        self._copying: torch.cuda.Stream | None = None

    def __iter__(self) -> Iterator[StreamBatch]:  # type: ignore[override]
        return map(self._prepare, self._read())

    def _read(self) -> Iterator[RawBatch]:
        if self.num_threads:
            keys: Any = self.batch_sampler
            return read_ahead(self._read_batch, keys, self.num_threads)
        # Begun at once, not with the first batch: it draws a seed, which a resumed run repeats.
        return super().__iter__()

    def _prepare(self, raw: RawBatch) -> StreamBatch:
        if self.device.type != "cuda":
            return prepare(raw.to(self.device), self.preprocessing)
        return self._prepare_beside(raw, torch.cuda.current_stream(self.device))

    def _prepare_beside(self, raw: RawBatch, computing: torch.cuda.Stream) -> StreamBatch:
        """Copy the images on a stream of their own, while the GPU does the step before.

        Only the images: their memory is the next copy's as soon as they are prepared, which the
        last line has that copy wait for. The target lives on with the batch.
        """
        # Kept: memory belongs to the stream that it was taken on.
        self._copying = copying = self._copying or torch.cuda.Stream(self.device)
        with torch.cuda.stream(copying):
            images = tuple(x.to(self.device, non_blocking=True) for x in raw.images)
        computing.wait_stream(copying)
        batch = prepare(replace(raw, images=images).to(self.device), self.preprocessing)
        copying.wait_stream(computing)
        return batch


def prepare(raw: RawBatch, preprocessing: Preprocessing) -> StreamBatch:
    """Turn a batch as stored into one for the network, on the device it is on.

    Args:
        raw: the batch.
        preprocessing: size, streams and statistics.

    Returns:
        Streams of shape (B_m, C_m, *size), float32.
    """
    streams = tuple(_prepare_stream(raw, m, preprocessing) for m in range(len(raw.images)))
    return StreamBatch(streams, raw.presence, target=raw.target, ids=raw.ids)


def _prepare_stream(raw: RawBatch, stream: int, preprocessing: Preprocessing) -> Tensor:
    spec, images, frames = preprocessing.streams[stream], raw.images[stream], raw.frames[stream]
    draws = [raw.draws[b] for b in raw.presence.samples(stream).tolist()]
    shape = (len(images), spec.channels, *preprocessing.size)
    prepared = torch.empty(shape, dtype=torch.float32, device=images.device)
    for first in range(0, len(images), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        framed = _frame(images[rows], None if frames is None else frames[rows], spec, preprocessing)
        changed = photometric(framed, spec, draws[rows], stream)
        prepared[rows] = normalise(changed, spec, preprocessing.statistics[stream])
    return prepared


def _frame(
    images: Tensor, frames: Tensor | None, spec: StreamSpec, preprocessing: Preprocessing
) -> Tensor:
    """Cut and resize (B, H, W, C) as stored to (B, C, *size), float32."""
    if frames is None:
        return _channels_first(images)
    boxes, flipped = frames[:, :4], frames[:, 4].bool()
    if spec.kind == "depth":
        nearest = crop_nearest(images.float(), boxes, flipped, preprocessing.size)
        return _channels_first(nearest)
    return crop_resize(_channels_first(images), boxes, flipped, preprocessing.size)


def _channels_first(images: Tensor) -> Tensor:
    """(B, H, W, C) as stored to (B, C, H, W), float32, in one pass."""
    moved = images.permute(0, 3, 1, 2)
    return moved.to(torch.float32, memory_format=torch.contiguous_format)
