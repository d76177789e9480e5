"""How a model's images are prepared, in training and ever after: crop, resize, normalise.

On the CPU images are resized one after the other, by torch's own kernels, of which the one for 8
bits is several times as fast. On a GPU that would be more launching than work: there a bilinear
resize is a product with one matrix for rows and one for columns, so a batch of different crops is
two batched products, and no sample waits for another.
"""

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

Size = tuple[int, int]
"""Height and width in pixels."""


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
    def size(self) -> Size:
        """Height and width in pixels."""
        both = self.image_size
        return (both, both) if isinstance(both, int) else both

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
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


def resize(image: np.ndarray, spec: StreamSpec, size: Size) -> np.ndarray:
    """Resize a whole image, (H, W, C), as training would, and keep its dtype.

    Whole numbers are rounded. The result, (*size, C), is contiguous and has memory of its own.
    """
    whole = torch.tensor([[0, image.shape[0], 0, image.shape[1], 0]])
    resized = crop_resize([as_tensor(image)], whole, size, nearest=spec.kind == "depth")
    pixels = resized[0].permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels.round() if image.dtype.kind == "u" else pixels, image.dtype)


def as_tensor(image: np.ndarray) -> Tensor:
    """Wrap an array in a tensor; what cannot be written or is out of order is copied first."""
    return torch.from_numpy(np.require(image, requirements=["C", "W", "A"]))


def normalise(images: Tensor, spec: StreamSpec, statistics: StreamStatistics) -> Tensor:
    """Give images, (…, C, H, W), floating point, mean 0 and deviation 1 in each channel.

    Depth without a reading is exactly 0.
    """
    mean, std = _columns(statistics, images.device)
    if spec.kind != "depth":
        return (images - mean).div_(std)
    readings = images.nan_to_num(0.0, 0.0, 0.0).clamp_(min=0)
    return (readings - mean).div_(std).mul_(readings.sign())


@lru_cache(maxsize=64)
def _columns(statistics: StreamStatistics, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor([statistics.mean, statistics.std], device=device)[..., None, None]
    return mean, std


def crop_resize(
    images: Tensor | Sequence[Tensor], frames: Tensor, size: Size, *, nearest: bool
) -> Tensor:
    """Cut a box out of each image, resize it, and flip it if asked.

    Equal, to rounding, to cutting the box out and calling ``torch.nn.functional.interpolate`` with
    ``mode="bilinear", antialias=True``, or with ``mode="nearest-exact"``. On the CPU images of 8
    bits are blended as such, so rounded to whole numbers.

    Args:
        images: shape (B, H, W, C), or B of (H_b, W_b, C); uint8, uint16 or float32.
        frames: top, bottom, left and right of each box in pixels, and 1 where left and right are
            to be swapped, shape (B, 5), int64.
        size: height and width of the result.
        nearest: whether to take the nearest pixel instead of blending.

    Returns:
        Shape (B, C, *size), float32, with the values as stored.
    """
    if frames.device.type == "cpu":
        return (_take_each if nearest else _blend_each)(images, frames, size)
    assert isinstance(images, Tensor), "a batch is packed before it goes to a GPU"
    return (take_together if nearest else blend_together)(images, frames, size)


def blend_together(images: Tensor, frames: Tensor, size: Size) -> Tensor:
    """Resize bilinearly with antialiasing, all images by two products; see :func:`crop_resize`."""
    images = channels_first(images)
    top, bottom, left, right = frames[:, :4].to(images.dtype).unbind(1)
    by_row = _weights(top, bottom, images.shape[2], size[0])
    by_column = _weights(left, right, images.shape[3], size[1])
    by_column = torch.where(_flipped(frames)[..., None], by_column.flip(1), by_column)
    num_samples, channels, height, _ = images.shape
    shrunk = images.flatten(1, 2) @ by_column.mT
    return by_row[:, None] @ shrunk.view(num_samples, channels, height, size[1])


def take_together(images: Tensor, frames: Tensor, size: Size) -> Tensor:
    """Take nearest pixels, of all images by one index; see :func:`crop_resize`."""
    rows, columns = _nearest_pixels(frames, size)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    taken = _indexable(images)[sample, rows[:, :, None], columns[:, None, :]]
    return channels_first(taken.view(images.dtype))


def channels_first(images: Tensor) -> Tensor:
    """Turn (B, H, W, C) as stored into (B, C, H, W), float32, in one pass."""
    moved = images.permute(0, 3, 1, 2)
    return moved.to(torch.float32, memory_format=torch.contiguous_format)


def _blend_each(images: Tensor | Sequence[Tensor], frames: Tensor, size: Size) -> Tensor:
    blended = torch.empty(len(images), images[0].shape[-1], *size)
    for place, image, frame in zip(blended, images, frames.tolist(), strict=True):
        top, bottom, left, right, flipped = frame
        cut = _blend(image[top:bottom, left:right].permute(2, 0, 1), size)
        place.copy_(cut.flip(-1) if flipped else cut)
    return blended


def _blend(image: Tensor, size: Size) -> Tensor:
    pixels = image if image.dtype == torch.uint8 else image.float()
    if image.shape[1:] == size:
        return pixels
    return F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]


def _take_each(images: Tensor | Sequence[Tensor], frames: Tensor, size: Size) -> Tensor:
    taken = torch.empty(len(images), images[0].shape[-1], *size)
    for place, image, rows, columns in zip(
        taken, images, *_nearest_pixels(frames, size), strict=True
    ):
        pixels = _indexable(image).index_select(0, rows).index_select(1, columns)
        place.copy_(pixels.view(image.dtype).permute(2, 0, 1))
    return taken


def _nearest_pixels(frames: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Return rows, (B, height), and columns, (B, width), that the result is taken from."""
    top, bottom, left, right = frames[:, :4].unbind(1)
    rows = top[:, None] + _nearest(bottom - top, size[0])
    columns = left[:, None] + _nearest(right - left, size[1])
    return rows, torch.where(_flipped(frames), columns.flip(1), columns)


def _nearest(lengths: Tensor, size: int) -> Tensor:
    """Find the pixel of an axis of each length nearest to each of the result, (B, size)."""
    # By a number a GPU would multiply with its inverse, and take another pixel than a CPU.
    scale = (lengths.float() / torch.full_like(lengths, size, dtype=torch.float32))[:, None]
    nearest = ((_count(size, scale) + 0.5) * scale).floor().long()
    return nearest.minimum(lengths[:, None] - 1)


def _weights(first: Tensor, last: Tensor, length: int, size: int) -> Tensor:
    """Weigh each pixel of an axis for each pixel of the result, shape (B, size, length).

    A triangle as wide as two pixels of the coarser grid, cut off at the box and summing to 1.
    """
    scale = ((last - first) / size)[:, None, None]
    reach = scale.clamp(min=1.0)
    centres = first[:, None, None] + scale * (_count(size, first)[:, None] + 0.5)
    source = _count(length, first) + 0.5
    weights = (1 - (source - centres).abs() / reach).clamp_(min=0)
    inside = (source > first[:, None, None]) & (source < last[:, None, None])
    weights = weights * inside
    return weights / weights.sum(dim=2, keepdim=True)


def _flipped(frames: Tensor) -> Tensor:
    return frames[:, 4:].bool()


def _indexable(images: Tensor) -> Tensor:
    """Return the same bits in a dtype that torch can index; of 16 bits without sign it cannot."""
    return images.view(torch.int16) if images.dtype == torch.uint16 else images


def _count(length: int, like: Tensor) -> Tensor:
    return torch.arange(length, dtype=like.dtype, device=like.device)
