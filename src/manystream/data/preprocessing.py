"""How a model's images are prepared, in training and ever after: resize, normalise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manystream.data.resampling import Size, crop_resize
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
    def size(self) -> Size:
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


@lru_cache(maxsize=64)
def _columns(statistics: StreamStatistics, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor([statistics.mean, statistics.std], device=device)[..., None, None]
    return mean, std
