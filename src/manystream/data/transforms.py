"""From raw images to model-ready tensors: as they are, or augmented, all streams as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from manystream.data.preprocessing import (
    Preprocessing,
    check_images,
    normalise,
    resize,
    to_tensor,
)

# The range of torchvision's RandomResizedCrop, relative to the image's own aspect ratio.
_ASPECT_RATIOS = (3 / 4, 4 / 3)
# Rec. 601 luma, as in torchvision's rgb_to_grayscale.
_LUMA = (0.299, 0.587, 0.114)


class Transform(Protocol):
    """Prepares the images of one sample; :class:`EvalTransform` and :class:`TrainTransform`."""

    def __call__(
        self, images: Sequence[np.ndarray | None], rng: np.random.Generator
    ) -> list[Tensor | None]:
        """Prepare one sample.

        Args:
            images: one per stream, shape (H, W, C); None where the stream is absent.
            rng: this sample's random numbers, see :func:`sample_rng`.

        Returns:
            One per stream, shape (C, *image_size), float32; None where the stream is absent.
        """
        ...


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Random numbers of one sample in one epoch, whichever worker draws them.

    Args:
        seed: of the run; 0 or more, as are the others.
        epoch: from 0.
        index: number of the sample in its source.
    """
    return np.random.default_rng((seed, epoch, index))


class EvalTransform:
    """Resize the whole image to ``image_size`` and normalise.

    Nothing is cut off; an image of another aspect ratio is stretched, as it is in training.
    Depth is resized to the nearest pixel, the rest bilinearly with antialiasing. After
    normalisation a depth pixel without a reading (not above 0, or not finite) is exactly 0.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(
        self, images: Sequence[np.ndarray | None], rng: np.random.Generator | None = None
    ) -> list[Tensor | None]:
        """Prepare one sample as :class:`Transform` says; ``rng`` is not used.

        Raises:
            ValueError: if the number of images or of their channels is not the streams'.
        """
        check_images(images, self.preprocessing.streams)
        return [
            None if image is None else _prepare(image, stream, self.preprocessing)
            for stream, image in enumerate(images)
        ]


class TrainTransform:
    """Random resized crop and flip, the same for all streams; colour jitter; normalise.

    The crop is one box in fractions of each image's own size, laid on the pixel grid of the
    coarsest image, so streams whose resolutions are multiples of each other stay aligned to the
    pixel. Every call draws the same number of values whichever streams are present. All
    ``"color"`` streams of a sample get the same jitter; the others keep their values.

    Args:
        preprocessing: size, streams and statistics.
        scale: range of the crop's area as a fraction of the image's.
        flip: probability of a horizontal flip.
        color: brightness, contrast and saturation are each multiplied by a factor drawn from
            [1 - color, 1 + color].

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        scale: tuple[float, float] = (0.5, 1.0),
        flip: float = 0.5,
        color: float = 0.4,
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale={scale}; expected two fractions, 0 < smallest <= largest <= 1")
        _check_fraction("flip", flip)
        _check_fraction("color", color)
        self.preprocessing = preprocessing
        self.scale = scale
        self.flip = flip
        self.color = color

    def __call__(
        self, images: Sequence[np.ndarray | None], rng: np.random.Generator
    ) -> list[Tensor | None]:
        """Prepare one sample as :class:`Transform` says.

        Raises:
            ValueError: if the number of images or of their channels is not the streams'.
        """
        check_images(images, self.preprocessing.streams)
        drawn = self._draw(images, rng)
        return [
            None
            if image is None
            else _prepare(_reframe(image, drawn), stream, self.preprocessing, drawn.factors)
            for stream, image in enumerate(images)
        ]

    def _draw(self, images: Sequence[np.ndarray | None], rng: np.random.Generator) -> _Augmentation:
        rows, columns = _draw_box(rng, self.scale)
        return _Augmentation(
            _snap(rows, min(image.shape[0] for image in images if image is not None)),
            _snap(columns, min(image.shape[1] for image in images if image is not None)),
            bool(rng.random() < self.flip),
            rng.uniform(1 - self.color, 1 + self.color, size=3).tolist(),
        )


class _Span(NamedTuple):
    """A stretch of one axis, in fractions of its length."""

    start: float
    stop: float


class _Augmentation(NamedTuple):
    """What was drawn for one sample; ``factors`` are brightness, contrast and saturation."""

    rows: _Span
    columns: _Span
    flipped: bool
    factors: list[float]


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}; expected a number from 0 to 1")


def _draw_box(rng: np.random.Generator, scale: tuple[float, float]) -> tuple[_Span, _Span]:
    area = rng.uniform(*scale)
    # Narrowed so that neither side is longer than the image's.
    low, high = max(_ASPECT_RATIOS[0], area), min(_ASPECT_RATIOS[1], 1 / area)
    ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
    height, width = min(1.0, math.sqrt(area / ratio)), min(1.0, math.sqrt(area * ratio))
    top, left = rng.uniform(0, 1 - height), rng.uniform(0, 1 - width)
    return _Span(top, top + height), _Span(left, left + width)


def _pixels(span: _Span, length: int) -> tuple[int, int]:
    first = min(round(span.start * length), length - 1)
    return first, max(round(span.stop * length), first + 1)


def _snap(span: _Span, length: int) -> _Span:
    first, last = _pixels(span, length)
    return _Span(first / length, last / length)


def _crop(image: np.ndarray, rows: _Span, columns: _Span) -> np.ndarray:
    top, bottom = _pixels(rows, image.shape[0])
    left, right = _pixels(columns, image.shape[1])
    return image[top:bottom, left:right]


def _reframe(image: np.ndarray, drawn: _Augmentation) -> np.ndarray:
    cropped = _crop(image, drawn.rows, drawn.columns)
    return cropped[:, ::-1] if drawn.flipped else cropped


def _prepare(
    image: np.ndarray,
    stream: int,
    preprocessing: Preprocessing,
    factors: Sequence[float] | None = None,
) -> Tensor:
    spec = preprocessing.streams[stream]
    prepared = resize(to_tensor(image), spec, preprocessing.size)
    if factors is not None and spec.kind == "color":
        prepared = _jitter(prepared, *factors)
    return normalise(prepared, spec, preprocessing.statistics[stream])


def _jitter(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    image = (image * brightness).clamp(0, 255)
    image = _blend(image, _grey(image).mean(), contrast)
    return _blend(image, _grey(image), saturation)


def _blend(image: Tensor, base: Tensor, factor: float) -> Tensor:
    return (image * factor + base * (1 - factor)).clamp(0, 255)


def _grey(image: Tensor) -> Tensor:
    if image.shape[0] != len(_LUMA):
        return image.mean(dim=0, keepdim=True)
    return (image * torch.tensor(_LUMA).view(-1, 1, 1)).sum(dim=0, keepdim=True)
