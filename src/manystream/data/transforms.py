"""From images as stored to a batch for the network: crop, resize, vary, normalise.

A whole batch at once, in the process that reads it or on a GPU. What is drawn at random has been
drawn sample by sample before, so it is the same in both places; values agree to rounding, of images
of 8 bits to one level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from manystream.batch import StreamBatch
from manystream.data.augmentation import Draw, disturb_depth, jitter_color
from manystream.data.preprocessing import (
    Preprocessing,
    Size,
    as_tensor,
    channels_first,
    crop_resize,
    normalise,
    resize,
)
from manystream.data.streams import StreamSpec
from manystream.presence import Presence, upload

# Pixels of the result that are prepared at once. On the CPU an image or a few, so that what lies in
# between stays in its cache; on a GPU fewer would take longer to launch than to run, and more would
# need memory beside the network's.
_AT_ONCE_ON_CPU, _AT_ONCE_ON_GPU = 1 << 16, 1 << 23

# An image with more pixels than as many of the network's would take longer to travel than to be
# resized where it was decoded; 640 × 480 for 224 × 224 is six.
_MOST_FOR_EACH_PIXEL = 8


@dataclass(frozen=True, eq=False)
class RawBatch:
    """Images as stored, and what was drawn for them; samples are in the caller's order.

    Attributes:
        images: the present rows of each stream in their stored dtype and in sorted order: B_m of
            (H, W, C) as they were read, or one (B_m, H, W, C).
        frames: where each image is to be cut, and whether it is to be flipped, shape (B_m, 5):
            top, bottom, left, right, 0 or 1; None where all are taken as they are.
        draws: what was drawn for each sample.
        presence: who has which stream.
        target: of each sample.
        ids: name of each sample, for messages.
    """

    images: tuple[Tensor | list[Tensor], ...]
    frames: tuple[Tensor | None, ...]
    draws: tuple[Draw, ...]
    presence: Presence
    target: Any
    ids: tuple[str, ...]

    def to(self, device: torch.device) -> RawBatch:
        """Bring images, frames and target to a device, without waiting for it."""
        return self._map(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> RawBatch:
        """Move images, frames and target to page-locked memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> RawBatch:
        parts = (self.images, self.frames, self.target)
        images, frames, target = tree_map_only(Tensor, function, parts)
        return replace(self, images=images, frames=frames, target=target)


def prepare(raw: RawBatch, preprocessing: Preprocessing) -> StreamBatch:
    """Turn a batch as stored into one for the network, on the device it is on.

    For a GPU the batch is as :func:`packed` made it. Streams are (B_m, C_m, *size), float32.
    """
    streams = tuple(_prepare_stream(raw, m, preprocessing) for m in range(len(raw.images)))
    return StreamBatch(streams, raw.presence, target=raw.target, ids=raw.ids)


def packed(raw: RawBatch, preprocessing: Preprocessing) -> RawBatch:
    """Make one tensor of each stream's images, to travel to a GPU and be prepared there.

    Images smaller than the others are filled up at the bottom and right. One with more than eight
    times the network's pixels is cut and resized here, to just what the network is to see.
    """
    pairs = [
        _pack(images, frames, spec, preprocessing.size)
        for images, frames, spec in zip(raw.images, raw.frames, preprocessing.streams, strict=True)
    ]
    images, frames = zip(*pairs, strict=True)
    return replace(raw, images=images, frames=frames)


def _prepare_stream(raw: RawBatch, stream: int, preprocessing: Preprocessing) -> Tensor:
    spec, images, frames = preprocessing.streams[stream], raw.images[stream], raw.frames[stream]
    draws = [raw.draws[b] for b in raw.presence.samples(stream).tolist()]
    device = images.device if isinstance(images, Tensor) else torch.device("cpu")
    shape = (len(images), spec.channels, *preprocessing.size)
    prepared = torch.empty(shape, dtype=torch.float32, device=device)
    pixels = _AT_ONCE_ON_CPU if device.type == "cpu" else _AT_ONCE_ON_GPU
    at_once = max(1, pixels // (shape[2] * shape[3]))
    for first in range(0, len(images), at_once):
        rows = slice(first, first + at_once)
        if frames is None:
            assert isinstance(images, Tensor), "only a packed batch is taken as it is"
            framed = channels_first(images[rows])
        else:
            # Blending a reading of depth with a missing one would invent a distance.
            nearest = spec.kind == "depth"
            framed = crop_resize(images[rows], frames[rows], shape[2:], nearest=nearest)
        changed = _vary(framed, spec, draws[rows], stream)
        prepared[rows] = normalise(changed, spec, preprocessing.statistics[stream])
    return prepared


def _vary(images: Tensor, spec: StreamSpec, draws: Sequence[Draw], stream: int) -> Tensor:
    """Change values as drawn: all color of a sample alike, and all depth."""
    if spec.kind == "color" and any(drawn.color for drawn in draws):
        factors = torch.tensor([drawn.color or (1.0, 1.0, 1.0) for drawn in draws])
        return jitter_color(images, upload(factors, images.device))
    if spec.kind == "depth" and any(drawn.depth for drawn in draws):
        return disturb_depth(images, [drawn.depth for drawn in draws], stream)
    return images


def _pack(
    images: Tensor | list[Tensor], frames: Tensor | None, spec: StreamSpec, size: Size
) -> tuple[Tensor, Tensor | None]:
    if frames is None:
        return _stack(images), None
    most = _MOST_FOR_EACH_PIXEL * size[0] * size[1]
    large = [image.shape[0] * image.shape[1] > most for image in images]
    if any(large):
        pairs = [
            _fit(image, frame, spec, size) if is_large else (image, frame)
            for image, frame, is_large in zip(images, frames, large, strict=True)
        ]
        images, frames = [image for image, _ in pairs], torch.stack([frame for _, frame in pairs])
    as_they_are = bool((frames == torch.tensor([0, size[0], 0, size[1], 0])).all())
    return _stack(images), None if as_they_are else frames


def _fit(image: Tensor, frame: Tensor, spec: StreamSpec, size: Size) -> tuple[Tensor, Tensor]:
    """Cut and resize one image, and give what remains to be done: to flip it or not."""
    top, bottom, left, right, flipped = frame.tolist()
    cut = resize(image[top:bottom, left:right].numpy(), spec, size)
    return as_tensor(cut), torch.tensor([0, size[0], 0, size[1], flipped])


def _stack(images: Tensor | list[Tensor]) -> Tensor:
    if isinstance(images, Tensor):
        return images
    arrays = [image.numpy() for image in images]
    height, width = np.max([array.shape[:2] for array in arrays], axis=0)
    shape = (len(arrays), height, width, arrays[0].shape[2])
    # Torch cannot say what holds both 8 and 16 bits; numpy can.
    dtype = np.result_type(*arrays)
    smaller = any(array.shape[:2] != shape[1:3] for array in arrays)
    stacked = np.zeros(shape, dtype) if smaller else np.empty(shape, dtype)
    for place, array in zip(stacked, arrays, strict=True):
        place[: array.shape[0], : array.shape[1]] = array
    return torch.from_numpy(stacked)
