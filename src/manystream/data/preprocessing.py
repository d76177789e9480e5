"""How a model's images are prepared, in training and ever after: resize, normalise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from manystream.data.source import StreamSpec
from manystream.data.statistics import StreamStatistics


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


def to_tensor(image: np.ndarray) -> Tensor:
    """Turn a raw image (H, W, C) into float32 of shape (C, H, W) with the same values."""
    # Always a copy: the source may hand out read-only or shared memory.
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), dtype=np.float32, order="C"))


def resize(image: Tensor, spec: StreamSpec, size: tuple[int, int]) -> Tensor:
    """Stretch an image (C, H, W) to ``size``: depth to the nearest pixel, the rest antialiased."""
    if spec.kind == "depth":  # Blending a reading with a missing one would invent a distance.
        return F.interpolate(image[None], size, mode="nearest-exact")[0]
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def normalise(image: Tensor, spec: StreamSpec, statistics: StreamStatistics) -> Tensor:
    """Give an image (C, H, W) mean 0 and deviation 1; depth without a reading is exactly 0."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (statistics.mean, statistics.std))
    normalised = (image - mean) / std
    if spec.kind != "depth":
        return normalised
    return torch.where(image.isfinite() & (image > 0), normalised, 0.0)
