"""Noise and darkness on the images of one stream, as a network sees them: after normalisation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from manystream.batch import StreamBatch
from manystream.data.streams import StreamKind

CorruptionKind = Literal["noise", "darkness"]


@dataclass(frozen=True)
class Corruption:
    """What is done to one stream; a sample that lacks it stays as it is.

    ``noise`` of level s adds Gaussian noise of s standard deviations of the stream's training
    images, which normalisation made 1. ``darkness`` of level d multiplies raw intensities by 1 − d;
    of a depth stream, which light does not reach, each reading is lost with probability d. A depth
    pixel without a reading is 0 and stays 0 under both.

    Attributes:
        kind: ``"noise"`` or ``"darkness"``.
        stream: number of the stream.
        level: 0 or more; darkness at most 1, which is black, or no reading at all.
        stream_kind: how the stream's values are meant.
        black: what a raw 0 is after normalisation, one number per channel.
    """

    kind: CorruptionKind
    stream: int
    level: float
    stream_kind: StreamKind = "other"
    black: tuple[float, ...] = (0.0,)

    def apply(self, batch: StreamBatch, generator: torch.Generator) -> StreamBatch:
        """Change this stream's images of a batch.

        Args:
            batch: a batch before the first layer.
            generator: random numbers, on the batch's device.
        """
        streams = list(batch.streams)
        streams[self.stream] = self._change(streams[self.stream], generator)
        return replace(batch, streams=tuple(streams))

    def _change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        is_depth = self.stream_kind == "depth"
        if self.kind == "noise":
            noisy = add_noise(images, self.level, generator)
            return torch.where(images == 0, images, noisy) if is_depth else noisy
        if is_depth:
            return lose_readings(images, self.level, generator)
        return darken(images, self.level, self.black)


def add_noise(images: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise with a standard deviation of ``level`` to (B, C, H, W)."""
    noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return images + level * noise


def darken(images: Tensor, level: float, black: tuple[float, ...]) -> Tensor:
    """Take a share of the light away from (B, C, H, W), where C numbers are a black pixel."""
    floor = images.new_tensor(black).view(-1, 1, 1)
    return floor + (images - floor) * (1 - level)


def lose_readings(images: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """Set pixels of (B, C, H, W) to 0, no reading, each with probability ``level``."""
    num_images, _, *size = images.shape
    drawn = torch.rand(num_images, 1, *size, generator=generator, device=images.device)
    return torch.where(drawn < level, 0.0, images)
