"""What an evaluation can be told, as one typed dataclass that the command line reads too."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class EvaluationOptions:
    """Under which conditions a network is measured; an empty list leaves one out.

    Raises:
        ValueError: if a number is out of its range.
    """

    loss_rates: list[float] = field(default_factory=lambda: [i / 10 for i in range(10)])
    """Probabilities that a sample loses streams at random; at least one always stays."""
    loss_draws: int = 20
    """Times that each rate is drawn, for the spread."""
    noise_levels: list[float] = field(default_factory=lambda: [0.25, 0.5, 1.0, 2.0])
    """Gaussian noise on one stream at a time, in standard deviations of its training images."""
    darkness_levels: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75, 1.0])
    """Share of light that one stream at a time lacks; of a depth stream, share of readings."""
    seed: int = 0
    """Seed of losses and noise."""

    def __post_init__(self) -> None:
        for name, most in (("loss_rates", 1.0), ("noise_levels", math.inf), ("darkness_levels", 1)):
            for value in getattr(self, name):
                if not 0 <= value <= most:
                    allowed = "0 or more" if most == math.inf else "0 to 1"
                    raise ValueError(f"{name} has {value}; expected numbers of {allowed}")
        if self.loss_draws < 1:
            raise ValueError(f"loss_draws is {self.loss_draws}; expected at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; expected 0 or more")
