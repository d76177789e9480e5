"""What streams of files hold, told from their first images, their names and the user."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from manystream.data.image import MAX_PIXELS, UnreadableImageError, read_image
from manystream.data.source import StreamKind, StreamSpec
from manystream.data.sources.files import Decode
from manystream.data.units import LengthUnit, ToMetres

# Like depth or colour to look at, and neither.
_NAMED_OTHER = re.compile(r"(?i)hha|infrared|thermal|(?<![a-z])n?ir(?![a-z])")


@dataclass(frozen=True)
class StreamHints:
    """What the user says about streams of files.

    Attributes:
        kinds: what a stream holds.
        units: the unit of a stream's depth, which is then converted to metres.
        max_pixels: height × width above which a file is unreadable.
        options: what the options by which the user says so begin with.
    """

    kinds: Mapping[str, StreamKind] = field(default_factory=dict)
    units: Mapping[str, LengthUnit] = field(default_factory=dict)
    max_pixels: int = MAX_PIXELS
    options: str = "--data."

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
                    f"{self.options}{option} names the stream {unknown[0]!r}; the data has "
                    f"{', '.join(available)}"
                )
        units = {spec.name: spec.unit for spec in streams}
        for name, unit in units.items():
            if (unit == "m") != (name in self.units):
                wanted = "in metres" if unit == "m" else "as its files store it"
                change = "give" if unit == "m" else "leave out"
                raise ValueError(
                    f"the model takes the depth of {name!r} {wanted}; {change} the files' unit: "
                    f"{self.options}units '{{{name}: …}}'"
                )

    def decoders(self) -> dict[str, Decode]:
        """By the streams' names, the conversions of their depth to metres."""
        return {name: ToMetres(unit) for name, unit in self.units.items()}

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
        channels, kind = image.shape[-1], self.kinds.get(name) or _infer_kind(name, image)
        if name not in self.units:
            return StreamSpec(name, channels, kind)
        if kind != "depth" and channels > 1:
            raise ValueError(
                f"{self.options}units gives {name} in {self.units[name]}, but its images have "
                f"{channels} channels of {image.dtype}; only depth has a unit: leave it out, or if "
                f"it is depth, say so: {self.options}kinds '{{{name}: depth}}'"
            )
        return StreamSpec(name, channels, "depth", "m")


def color_first(specs: Iterable[StreamSpec]) -> tuple[StreamSpec, ...]:
    """Streams in the order they have by default: colour, then by name."""
    return tuple(sorted(specs, key=_color_first))


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
