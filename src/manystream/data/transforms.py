"""From raw images to model-ready tensors on the host: as they are, or augmented, all as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from manystream.data.augmentation import Augmentation, Draw, draw, pixels
from manystream.data.photometry import disturb_depth, jitter_color
from manystream.data.preprocessing import Preprocessing, check_images, normalise, resize
from manystream.data.streams import StreamSpec
from manystream.presence import upload


class Transform(Protocol):
    """Prepares the images of one sample; :class:`EvalTransform` and :class:`TrainTransform`."""

    @property
    def preprocessing(self) -> Preprocessing: ...

    def draw(self, sizes: Sequence[tuple[int, int]], rng: np.random.Generator) -> Draw:
        """Draw what is to happen to one sample.

        Args:
            sizes: height and width of each image that is present.
            rng: this sample's random numbers, see :func:`sample_rng`.
        """
        ...

    def __call__(
        self, images: Sequence[np.ndarray | None], rng: np.random.Generator
    ) -> list[Tensor | None]:
        """Prepare one sample.

        Args:
            images: one per stream, shape (H, W, C); None where the stream is absent.
            rng: this sample's random numbers, see :func:`sample_rng`.

        Returns:
            One per stream, shape (C, *image_size), float32; None where the stream is absent.

        Raises:
            ValueError: if the number of images or of their channels is not the streams'.
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

    def draw(
        self, sizes: Sequence[tuple[int, int]], rng: np.random.Generator | None = None
    ) -> Draw:
        """Draw nothing."""
        return Draw()

    def __call__(
        self, images: Sequence[np.ndarray | None], rng: np.random.Generator | None = None
    ) -> list[Tensor | None]:
        """Prepare one sample as :class:`Transform` says; ``rng`` is not used."""
        return _prepare_sample(images, self.preprocessing, Draw())


class TrainTransform:
    """Random resized crop and flip, the same for all streams; color jitter; normalise.

    The crop is one box in fractions of each image's own size. All ``"color"`` streams of a sample
    get the same jitter, all ``"depth"`` streams the same scale and holes; what is drawn does not
    depend on which streams are present.

    Args:
        preprocessing: size, streams and statistics.
        augmentation: how samples are varied.
    """

    def __init__(
        self, preprocessing: Preprocessing, augmentation: Augmentation | None = None
    ) -> None:
        self.preprocessing = preprocessing
        self.augmentation = augmentation or Augmentation()

    def draw(self, sizes: Sequence[tuple[int, int]], rng: np.random.Generator) -> Draw:
        """Draw one sample's augmentation as :func:`manystream.data.augmentation.draw` does."""
        return draw(self.augmentation, sizes, rng)

    def __call__(
        self, images: Sequence[np.ndarray | None], rng: np.random.Generator
    ) -> list[Tensor | None]:
        """Prepare one sample as :class:`Transform` says."""
        check_images(images, self.preprocessing.streams)
        drawn = self.draw([image.shape[:2] for image in images if image is not None], rng)
        return _prepare_sample(images, self.preprocessing, drawn)


def photometric(images: Tensor, spec: StreamSpec, draws: Sequence[Draw], stream: int) -> Tensor:
    """Change the values of one stream's images as was drawn.

    Args:
        images: shape (B, C, H, W), float32, in stored units.
        spec: the stream.
        draws: one for each image.
        stream: its number.
    """
    if spec.kind == "color" and any(drawn.color for drawn in draws):
        factors = torch.tensor([drawn.color or (1.0, 1.0, 1.0) for drawn in draws])
        return jitter_color(images, upload(factors, images.device))
    if spec.kind == "depth" and any(drawn.depth for drawn in draws):
        return disturb_depth(images, [drawn.depth for drawn in draws], stream)
    return images


def _prepare_sample(
    images: Sequence[np.ndarray | None], preprocessing: Preprocessing, drawn: Draw
) -> list[Tensor | None]:
    check_images(images, preprocessing.streams)
    return [
        None if image is None else _prepare(image, stream, preprocessing, drawn)
        for stream, image in enumerate(images)
    ]


def _prepare(image: np.ndarray, stream: int, preprocessing: Preprocessing, drawn: Draw) -> Tensor:
    spec = preprocessing.streams[stream]
    resized = resize(_crop(image, drawn), spec, preprocessing.size)[None]
    framed = resized.flip(-1) if drawn.flipped else resized
    changed = photometric(framed, spec, [drawn], stream)
    return normalise(changed, spec, preprocessing.statistics[stream])[0]


def _crop(image: np.ndarray, drawn: Draw) -> np.ndarray:
    top, bottom = pixels(drawn.rows, image.shape[0])
    left, right = pixels(drawn.columns, image.shape[1])
    return image[top:bottom, left:right]
