"""Where images come from and how they are fed, as the command line and Python say it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from manystream.choices import check_choices
from manystream.data.image import MAX_PIXELS
from manystream.data.problems import OnError
from manystream.data.streams import LengthUnit, StreamKind

Format = Literal["folder", "sun_rgbd", "nyu", "manifest", "prepared"]


@dataclass(frozen=True)
class Augmentation:
    """How training samples are varied. What is done to depth is off until it is asked for.

    Raises:
        ValueError: if a number is out of its range.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    """Range of the crop's area as a fraction of the image's."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    color: float = 0.4
    """Brightness, contrast and saturation of color are each multiplied by a factor from
    [1 - color, 1 + color]."""
    depth_scale: float = 0.0
    """All depth of a sample is multiplied by one factor from [1 - depth_scale, 1 + depth_scale]."""
    depth_noise: float = 0.0
    """Each reading of depth is multiplied by exp(depth_noise · n), n normal."""
    depth_holes: int = 0
    """Most rectangles in which depth loses its readings; their number is uniform from 0."""

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"scale={self.scale}; expected two fractions, 0 < smallest <= largest <= 1"
            )
        for name in ("flip", "color", "depth_scale", "depth_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}; expected a number from 0 to 1")
        if self.depth_scale == 1:
            raise ValueError("depth_scale=1 could make all depth 0; expected less than 1")
        if not 0 <= self.depth_holes <= 64:
            raise ValueError(f"depth_holes={self.depth_holes}; expected a number from 0 to 64")


@dataclass
class DataOptions:
    """Where images come from and how they are fed.

    Raises:
        ValueError: if a value is out of its range, or none of its choices.
    """

    root: Path | None = None
    """Where the data set is: a folder laid out as root/<split>/<stream>/<class>/<id>.<ext>, SUN
    RGB-D or NYU Depth v2 as unpacked, a manifest (.csv or .parquet), or a prepared set; without
    one, rendered RGB-D scenes of ten things on a table are used."""
    format: Format | None = None
    """What is at root; found out by default, and said."""
    streams: list[str] | None = None
    """Streams to use, in order, for example [rgb,depth]; all that the training split has by
    default."""
    train_split: str = "train"
    """Split to train on. Where validation is held out of training, trainval is all of it."""
    val_split: str = "val"
    """Split to validate and evaluate on. SUN RGB-D, NYU and manifests without a split of this name
    hold a part of training out, which shares no scene with the rest."""
    val_share: float = 0.2
    """Share of the training samples that are held out as val, if val is held out. A trained model
    remembers its own, and is evaluated on what it was not trained on."""
    split_seed: int = 0
    """Seed of what is held out; remembered too."""
    image_size: int = 224
    """Height and width of the images in pixels."""
    batch_size: int | Literal["auto"] = 64
    """Samples per batch; auto is for training on one GPU, the largest whose steps fit."""
    num_workers: int = 2
    """Processes that read images; 0 reads in the main process. Images of a prepared set need no
    decoding: for a GPU, threads read them, as many but at most 4."""
    on_error: OnError = "raise"
    """What bad input does: stop before training, or be skipped, counted and reported. Skipped, an
    unreadable image is absent, a row without a usable label is left out, and NaN or negative depth
    is no reading."""
    max_pixels: int = MAX_PIXELS
    """Height times width above which an image is not decoded and counts as unreadable."""
    same_view: bool = True
    """Count a sample as unreadable if its images differ in aspect ratio, so cannot show the same
    view."""
    kinds: dict[str, StreamKind] | None = None
    """What a stream of files holds, as {stream: color, depth or other}; found from its first image
    and its name by default."""
    units: dict[str, LengthUnit] | None = None
    """Unit of a depth stream's files, as {stream: m, dm, cm, mm, um, in or ft}; they are converted
    to metres. Without one, values are used as they are stored."""
    depth: Literal["filled", "raw"] = "filled"
    """Which depth of SUN RGB-D (depth_bfx or depth) and NYU (depths or rawDepths)."""
    nyu_classes: Literal[10, 27] = 10
    """Classes of NYU: the nine common scene types and the others as one, or all 27 types."""
    num_scenes: int = 2400
    """Rendered training scenes, if there is no root; validation has a quarter as many, or ten."""
    verify: bool = False
    """Compare every image of a prepared set with its checksum before use; without it, each is
    compared when it is read first."""
    augment: bool = True
    """Whether training samples are varied at random, all streams of a sample together."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How they are varied."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("image_size", "batch_size", "num_scenes", "max_pixels"):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        for name in ("num_workers", "split_seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 < self.val_share < 1:
            raise ValueError(f"val_share is {self.val_share}; expected between 0 and 1")
        names = self.streams
        if names is not None and (not names or len(set(names)) < len(names)):
            raise ValueError(f"streams is {names}; expected one or more, each once")
        self._check_streams_described()

    @property
    def samples_per_batch(self) -> int:
        """``batch_size`` as a number.

        Raises:
            ValueError: if it is still to be found.
        """
        if self.batch_size == "auto":
            raise ValueError("batch_size is auto, which only `train` finds; name a number")
        return self.batch_size

    def _check_streams_described(self) -> None:
        for stream, unit in (self.units or {}).items():
            if (kind := (self.kinds or {}).get(stream, "depth")) != "depth":
                raise ValueError(
                    f"units gives {stream} in {unit}, but kinds says {kind}; only depth has a unit"
                )
