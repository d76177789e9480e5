"""What was measured of a network under conditions, and the curves that it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from manystream.training.evaluation.corruptions import CorruptionKind

LEVEL_UNITS: dict[CorruptionKind, str] = {
    "noise": "standard deviations of noise",
    "darkness": "light, or depth readings, lost",
}
"""What the levels of a corruption count."""


@dataclass(frozen=True)
class Curve:
    """Mean class accuracy at several levels of one condition.

    Attributes:
        unit: what the levels count.
        levels: one number per point.
        values: shares of 1, one per level.
        spread: standard deviation of each, where it was drawn several times.
        without: the value where the stream in question is absent, if there is one.
    """

    unit: str
    levels: list[float]
    values: list[float]
    spread: list[float] | None = None
    without: float | None = None


@dataclass(frozen=True)
class Robustness:
    """A network's measurements under every condition; shares of 1.

    Attributes:
        subsets: by the streams that are left, joined by " + ": ``loss``, ``accuracy``,
            ``mean_class_accuracy``, ``num_samples``. All streams come first.
        random_loss: for each rate of loss, see :func:`random_loss_curve`; empty with one stream.
        corruptions: by kind, by stream: the same as of a subset, and ``level``, beginning at 0.
    """

    subsets: dict[str, dict[str, float]]
    random_loss: list[dict[str, float]] = field(default_factory=list)
    corruptions: dict[CorruptionKind, dict[str, list[dict[str, float]]]] = field(
        default_factory=dict
    )

    def curves(self) -> dict[str, Curve]:
        """Every condition but the subsets as a curve, by its title."""
        curves = {}
        if self.random_loss:
            curves["streams lost at random"] = self._loss_curve()
        for kind, by_stream in self.corruptions.items():
            for stream, points in by_stream.items():
                levels, values = _columns(points, "level")
                curves[f"{kind} on {stream}"] = Curve(
                    LEVEL_UNITS[kind], levels, values, without=self._without(stream)
                )
        return curves

    def _loss_curve(self) -> Curve:
        rates, values = _columns(self.random_loss, "rate")
        spread = [point["mean_class_accuracy_std"] for point in self.random_loss]
        return Curve("share of samples that lose streams", rates, values, spread)

    def _without(self, stream: str) -> float | None:
        names = next(iter(self.subsets)).split(" + ")
        left = self.subsets.get(" + ".join(name for name in names if name != stream))
        return None if left is None else left["mean_class_accuracy"]


def _columns(points: Sequence[Mapping[str, float]], level: str) -> tuple[list[float], list[float]]:
    return [p[level] for p in points], [p["mean_class_accuracy"] for p in points]
