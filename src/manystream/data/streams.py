"""What a stream holds: its channels, its kind of values and their unit, told or found out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from manystream.data.image import MAX_PIXELS, UnreadableImageError, read_image

StreamKind = Literal["color", "depth", "other"]

LengthUnit = Literal["m", "dm", "cm", "mm", "um", "in", "ft"]

METRES_PER: dict[LengthUnit, float] = {
    "m": 1.0,
    "dm": 0.1,
    "cm": 0.01,
    "mm": 0.001,
    "um": 1e-6,
    "in": 0.0254,
    "ft": 0.3048,
}
"""Metres in one of each unit."""

# Like depth or colour to look at, and neither.
_NAMED_OTHER = re.compile(r"(?i)hha|infrared|thermal|(?<![a-z])n?ir(?![a-z])")


@dataclass(frozen=True)
class StreamSpec:
    """One stream of a data set.

    Attributes:
        name: what the stream is called at the model's edge, for example ``"rgb"``.
        channels: channels of its images.
        kind: how its values are treated. ``"color"``: 8-bit intensities, colour is augmented.
            ``"depth"``: a range, where 0 means no reading. ``"other"``: plain values.
        unit: ``"m"`` if depth is in metres; empty if it is as stored, whatever that is.
    """

    name: str
    channels: int
    kind: StreamKind = "other"
    unit: Literal["", "m"] = ""

    def __str__(self) -> str:
        """As messages name it."""
        unit = f" in {self.unit}" if self.unit else ""
        return f"{self.name} ({self.channels} of {self.kind}{unit})"


RGBD_IN_METRES = (StreamSpec("rgb", 3, "color"), StreamSpec("depth", 1, "depth", "m"))
"""The streams of the public RGB-D sets."""


@dataclass(frozen=True)
class ToMetres:
    """Converts depth to metres; 0, NaN and negative values stay what they are.

    Args:
        unit: what 1 stands for.

    Example:
        >>> ToMetres("mm")(np.array([0, 1234], dtype=np.uint16))
        array([0.   , 1.234], dtype=float32)
    """

    unit: LengthUnit

    def __call__(self, depth: np.ndarray) -> np.ndarray:
        """Give float32 values of the same shape, each the nearest to the exact one."""
        return (depth.astype(np.float64) * METRES_PER[self.unit]).astype(np.float32)


@dataclass(frozen=True)
class StreamHints:
    """What the user says about streams of files.

    Attributes:
        kinds: what a stream holds.
        units: the unit of a stream's depth, which is then converted to metres.
        max_pixels: height × width above which a file is unreadable.
    """

    kinds: Mapping[str, StreamKind] = field(default_factory=dict)
    units: Mapping[str, LengthUnit] = field(default_factory=dict)
    max_pixels: int = MAX_PIXELS

    def check(self, streams: Sequence[StreamSpec], available: Sequence[str]) -> None:
        """Refuse hints that do not fit the data or the streams to be read.

        Args:
            streams: those to be read.
            available: names of all that the data has.

        Raises:
            ValueError: if a hint is about no stream, or a stream is to be in metres and its unit is
                not given, or the other way round.
        """
        for option, hints in (("kinds", self.kinds), ("units", self.units)):
            if unknown := sorted(set(hints) - set(available)):
                raise ValueError(
                    f"{option} names the stream {unknown[0]!r}; the data has {', '.join(available)}"
                )
        for spec in streams:
            if (spec.unit == "m") != (spec.name in self.units):
                wanted = "in metres" if spec.unit == "m" else "as its files store it"
                change = "give" if spec.unit == "m" else "leave out"
                raise ValueError(
                    f"the model takes the depth of {spec.name!r} {wanted}; {change} the files' "
                    f"unit: units={{{spec.name}: …}}"
                )

    def decoder(self, name: str) -> ToMetres | None:
        """Return what turns a stream's stored values into metres; None leaves them."""
        return ToMetres(self.units[name]) if name in self.units else None

    def describe(self, name: str, files: Iterable[Path]) -> StreamSpec:
        """Describe a stream by its first readable image and what is said about it.

        Three channels of uint8 are ``"color"``; one channel is ``"depth"`` if it is uint16 or
        float32 or if the name contains "depth"; anything else is ``"other"``, and so is a stream
        whose name says infrared, thermal or HHA.

        Args:
            name: of the stream.
            files: of the stream, one or more; looked at until one can be read.

        Raises:
            UnreadableImageError: if there is no readable image.
            ValueError: if there is no file, or a unit is given for what is no depth.
        """
        image = _first_readable(files, self.max_pixels)
        spec = described(name, image, self.kinds.get(name))
        if name not in self.units:
            return spec
        if spec.kind != "depth" and spec.channels > 1:
            raise ValueError(
                f"units gives {name} in {self.units[name]}, but its images have {spec.channels} "
                f"channels of {image.dtype}; only depth has a unit: leave it out, or if it is "
                f"depth, say so: kinds={{{name}: depth}}"
            )
        return StreamSpec(name, spec.channels, "depth", "m")


def described(name: str, image: np.ndarray, kind: StreamKind | None = None) -> StreamSpec:
    """Describe a stream by its name and one of its images, (H, W, C), unless its kind is told."""
    return StreamSpec(name, image.shape[-1], kind or _infer_kind(name, image))


def color_first(specs: Iterable[StreamSpec]) -> tuple[StreamSpec, ...]:
    """Sort streams as they are by default: colour, then by name."""
    return tuple(sorted(specs, key=_color_first))


def names_of(chosen: Iterable[str | StreamSpec] | None, streams: Iterable[StreamSpec]) -> list[str]:
    """Return the names of the streams that are chosen, or of all where nothing is."""
    return [x if isinstance(x, str) else x.name for x in (streams if chosen is None else chosen)]


def numbers_of(names: Iterable[str], streams: Sequence[StreamSpec], where: object) -> list[int]:
    """Find the numbers of streams by their names.

    Raises:
        ValueError: if there is no stream of a name ``where`` they were looked for.
    """
    known = [spec.name for spec in streams]
    numbers = []
    for name in names:
        if name not in known:
            raise ValueError(f"no stream {name!r} in {where}; it has {', '.join(known)}")
        numbers.append(known.index(name))
    return numbers


def _color_first(spec: StreamSpec) -> tuple[bool, bool, str]:
    named_color = any(word in spec.name.lower() for word in ("rgb", "color", "colour"))
    return spec.kind != "color", not named_color, spec.name


def _infer_kind(name: str, image: np.ndarray) -> StreamKind:
    channels = image.shape[-1]
    if _NAMED_OTHER.search(name):
        return "other"
    if channels == 3 and image.dtype == np.uint8:
        return "color"
    if channels == 1 and (image.dtype != np.uint8 or "depth" in name.lower()):
        return "depth"
    return "other"


def _first_readable(files: Iterable[Path], max_pixels: int) -> np.ndarray:
    problem = ValueError("the stream has no image")
    for file in files:
        try:
            return read_image(file, max_pixels)
        except UnreadableImageError as error:
            problem = error
    raise problem
