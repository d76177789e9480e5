"""Lengths as depth files store them, and metres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

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
