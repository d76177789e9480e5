"""What a stream holds: its channels, its kind of values and their unit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

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


def described(name: str, image: np.ndarray, kind: StreamKind | None = None) -> StreamSpec:
    """Describe a stream by its name and one of its images, (H, W, C), unless its kind is told.

    Three channels of uint8 are ``"color"``; one channel is ``"depth"`` if it is uint16 or float32
    or if the name contains "depth"; anything else is ``"other"``, and so is a stream whose name
    says infrared, thermal or HHA.
    """
    return StreamSpec(name, image.shape[-1], kind or _infer_kind(name, image))


def color_first(specs: Iterable[StreamSpec]) -> list[StreamSpec]:
    """Sort streams as they are by default: colour, then by name."""

    def key(spec: StreamSpec) -> tuple[bool, bool, str]:
        named_color = any(word in spec.name.lower() for word in ("rgb", "color", "colour"))
        return spec.kind != "color", not named_color, spec.name

    return sorted(specs, key=key)


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


def _infer_kind(name: str, image: np.ndarray) -> StreamKind:
    channels = image.shape[-1]
    if _NAMED_OTHER.search(name):
        return "other"
    if channels == 3 and image.dtype == np.uint8:
        return "color"
    if channels == 1 and (image.dtype != np.uint8 or "depth" in name.lower()):
        return "depth"
    return "other"
