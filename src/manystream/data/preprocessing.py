"""How a model's images are prepared, in training and ever after: resize, normalise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from manystream.data.statistics import StreamStatistics
from manystream.data.streams import StreamSpec


@dataclass(frozen=True)
class Preprocessing:
    """How a model's images are prepared; travels with a trained model, so that it predicts alike.

    Attributes:
        image_size: height and width in pixels; one number stands for both.
        streams: the streams in the order of the model's inputs; M of them.
        statistics: the training split's mean and standard deviation, one entry per stream.

    Raises:
        ValueError: if a size is not positive, or the statistics do not fit the streams.

    Example:
        >>> statistics = StreamStatistics(mean=(1500.0,), std=(700.0,))
        >>> preprocessing = Preprocessing(224, (StreamSpec("depth", 1, "depth"),), (statistics,))
        >>> Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
        True
    """

    image_size: int | tuple[int, int]
    streams: tuple[StreamSpec, ...]
    statistics: tuple[StreamStatistics, ...]

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ValueError(f"image_size={self.image_size}; expected positive pixels")
        expected = [spec.channels for spec in self.streams]
        found = [len(entry.mean) for entry in self.statistics]
        if found != expected:
            raise ValueError(
                f"statistics have {found} channels; expected {expected}, those of the streams "
                f"{[spec.name for spec in self.streams]}; survey the same streams"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        both = self.image_size
        return (both, both) if isinstance(both, int) else both

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Undo :meth:`to_dict`, also after a trip through JSON."""
        size = values["image_size"]
        return cls(
            size if isinstance(size, int) else (size[0], size[1]),
            tuple(StreamSpec(**spec) for spec in values["streams"]),
            tuple(
                StreamStatistics(tuple(entry["mean"]), tuple(entry["std"]))
                for entry in values["statistics"]
            ),
        )


def check_images(images: Sequence[np.ndarray | None], streams: Sequence[StreamSpec]) -> None:
    """Check that raw images are those of one sample of these streams.

    Args:
        images: one per stream, shape (H, W, C); None where the stream is absent.
        streams: the streams, M of them.

    Raises:
        ValueError: if the number of images or of their channels is not the streams'.
    """
    if len(images) != len(streams) or all(image is None for image in images):
        names = [spec.name for spec in streams]
        raise ValueError(
            f"images has {len(images)} entries, {sum(x is not None for x in images)} of them "
            f"present; expected one for each of {names}, None where absent, at least one present"
        )
    for image, spec in zip(images, streams, strict=True):
        if image is not None and (image.ndim != 3 or image.shape[-1] != spec.channels):
            raise ValueError(
                f"the image of stream {spec.name!r} has shape {image.shape}; "
                f"expected (H, W, {spec.channels})"
            )


def resize(image: np.ndarray, spec: StreamSpec, size: tuple[int, int]) -> Tensor:
    """Stretch a raw image: depth to the nearest pixel, the rest bilinearly with antialiasing.

    8-bit images are resized as such, which is several times as fast and rounds to whole numbers.

    Args:
        image: shape (H, W, C).
        spec: its stream.
        size: height and width of the result.

    Returns:
        Shape (C, *size), float32, with the values as stored; never shares the image's memory.
    """
    if image.shape[:2] == size:
        return _channels_first(torch.from_numpy(np.array(image, order="C")))
    if spec.kind == "depth":  # Blending a reading with a missing one would invent a distance.
        rows, columns = (_nearest(*pair) for pair in zip(image.shape, size, strict=False))
        return _channels_first(torch.from_numpy(image[rows][:, columns]))
    stored = np.array(image, np.uint8 if image.dtype == np.uint8 else np.float32, order="C")
    pixels = torch.from_numpy(stored).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, size, mode="bilinear", antialias=True)[0]
    return _channels_first(resized.permute(1, 2, 0))


def normalise(images: Tensor, spec: StreamSpec, statistics: StreamStatistics) -> Tensor:
    """Give images mean 0 and deviation 1; depth without a reading is exactly 0.

    Args:
        images: shape (C, H, W) or (B, C, H, W), floating point.
        spec: their stream.
        statistics: mean and standard deviation per channel.
    """
    mean, std = _columns(statistics, images.device)
    if spec.kind != "depth":
        return (images - mean).div_(std)
    readings = images.nan_to_num(0.0, 0.0, 0.0).clamp_(min=0)
    return (readings - mean).div_(std).mul_(readings.sign())


def _channels_first(pixels: Tensor) -> Tensor:
    """Turn (H, W, C) of any dtype into float32 (C, H, W)."""
    return pixels.permute(2, 0, 1).contiguous().float()


def _nearest(length: int, size: int) -> np.ndarray:
    """Pixel of an axis that is nearest to each pixel of the result, as ``nearest-exact`` has it."""
    scale = np.float32(length) / np.float32(size)
    nearest = np.floor((np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale)
    return np.asarray(np.minimum(nearest, length - 1), np.int64)


@lru_cache(maxsize=64)
def _columns(statistics: StreamStatistics, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor([statistics.mean, statistics.std], device=device)[..., None, None]
    return mean, std
