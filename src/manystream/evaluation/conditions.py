"""How well a network holds when sensors fail: subsets, losses at random, noise, darkness."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import torch

from manystream.data.preprocessing import Preprocessing
from manystream.evaluation.corruptions import Corruption, CorruptionKind
from manystream.evaluation.inference import answer, answers_by_subset, in_parts, inferring, read
from manystream.evaluation.measurement import (
    Measured,
    MeasurementPair,
    SubsetMeasurement,
    Subsets,
)
from manystream.evaluation.options import EvaluationOptions
from manystream.evaluation.random_loss import RandomLoss
from manystream.models import StreamNetwork
from manystream.tasks import Task

LEVEL_UNITS: dict[CorruptionKind, str] = {
    "noise": "standard deviations of noise",
    "darkness": "light, or depth readings, lost",
}
"""What the levels of a corruption count."""


@dataclass(frozen=True)
class Curve:
    """The task's first metric at several levels of one condition, always on the same samples.

    Attributes:
        unit: what the levels count.
        levels: one number per point.
        values: one per level.
        num_samples: samples that each is measured on.
        spread: standard deviation of each, where it was drawn several times.
        without: the value where the stream in question is absent, if there is one.
        chance: what an answer that looks at no image reaches, if that is known.
    """

    unit: str
    levels: list[float]
    values: list[float]
    num_samples: int
    spread: list[float] | None = None
    without: float | None = None
    chance: float | None = None


@dataclass(frozen=True)
class Robustness:
    """A network's measurements under every condition.

    Attributes:
        subsets: for every subset of the streams, what
            :func:`manystream.evaluation.evaluate_subsets` gives.
        random_loss: for each ``rate`` of loss, the task's metrics on all samples as they come, mean
            over draws, and their standard deviations with ``_std`` at the end; empty with one
            stream.
        corruptions: by kind, by stream: the same as of a subset, and ``level``, beginning at 0. On
            the samples that have every stream; where there are none, on all.
        metric: the metric that curves show.
    """

    subsets: Subsets
    random_loss: list[Measured] = field(default_factory=list)
    corruptions: dict[CorruptionKind, dict[str, list[Measured]]] = field(default_factory=dict)
    metric: str = field(kw_only=True)

    def curves(self) -> dict[str, Curve]:
        """Draw every condition but the subsets as a curve, by its title."""
        curves = {}
        if self.random_loss:
            unit = "share of samples that lose streams"
            curve = self._curve(unit, "rate", self.random_loss, self.subsets.as_they_come)
            spread = [point[f"{self.metric}_std"] for point in self.random_loss]
            curves["streams lost at random"] = replace(curve, spread=spread)
        intact = next(iter(self.subsets.values()), self.subsets.as_they_come)
        for kind, by_stream in self.corruptions.items():
            for stream, points in by_stream.items():
                curve = self._curve(LEVEL_UNITS[kind], "level", points, intact)
                curves[f"{kind} on {stream}"] = replace(curve, without=self._without(stream))
        return curves

    def _curve(self, unit: str, level: str, points: Sequence[Measured], intact: Measured) -> Curve:
        return Curve(
            unit,
            [point[level] for point in points],
            [point[self.metric] for point in points],
            int(intact["num_samples"]),
            chance=intact.get(f"{self.metric}_chance"),
        )

    def _without(self, stream: str) -> float | None:
        names = next(iter(self.subsets), "").split(" + ")
        left = self.subsets.get(" + ".join(name for name in names if name != stream))
        return None if left is None else left[self.metric]


def evaluate_conditions(
    network: StreamNetwork,
    task: Task,
    loader: Iterable[Any],
    options: EvaluationOptions | None = None,
    *,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    accelerator: str = "auto",
    progress: bool = False,
) -> Robustness:
    """Measure a network under every condition, reading each batch once.

    Args:
        network: the network.
        task: what it was trained on.
        loader: batches as :func:`manystream.batch.read_batch` takes them, with targets.
        options: which conditions.
        preprocessing: how the images were normalised, also as plain values; needed for darkness,
            and for noise to spare depth pixels without a reading.
        accelerator: device, see :func:`manystream.evaluation.inference.device_of`.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if a batch does not fit, the loader is empty, or darkness is asked for without
            ``preprocessing``.
    """
    options = options or EvaluationOptions()
    if isinstance(preprocessing, Mapping):
        preprocessing = Preprocessing.from_dict(preprocessing)
    corruptions = corruptions_of(options, network.num_streams, preprocessing)
    with inferring(network, accelerator) as device:
        by_subset = SubsetMeasurement(task, network.stream_names, device)
        at_random = RandomLoss(task, network.num_streams, options, device)
        corrupted = [MeasurementPair(task, device) for _ in corruptions]
        # Each has random numbers of its own, so that leaving one out does not change another.
        seeded = [torch.Generator(device).manual_seed(options.seed) for _ in corruptions]
        for batch in read(network, loader, device, task=task, progress=progress):
            for part in in_parts(batch):
                answers = answers_by_subset(network, part)
                by_subset.update(answers, part)
                at_random.update(answers, part)
            is_complete = batch.presence.mask.all(dim=1)
            for corruption, generator, pair in zip(corruptions, seeded, corrupted, strict=True):
                changed = corruption.apply(batch, generator)
                pair.update(answer(network, changed), batch.target, is_complete)
        subsets = by_subset.compute()
        intact = next(iter(subsets.values()), subsets.as_they_come)
        if not intact:
            raise ValueError("the loader has no sample; expected at least one")
        measured = [(pair.complete if subsets else pair.every).compute() for pair in corrupted]
        return Robustness(
            subsets,
            at_random.compute(),
            _by_kind(network.stream_names, corruptions, measured, intact),
            metric=task.primary_metric,
        )


def corruptions_of(
    options: EvaluationOptions, num_streams: int, preprocessing: Preprocessing | None
) -> list[Corruption]:
    """List every corruption that is asked for, by kind, stream and level.

    Raises:
        ValueError: if darkness is among them and nobody knows what is black.
    """
    if options.darkness_levels and preprocessing is None:
        raise ValueError(
            "darkness needs preprocessing, which says what a black pixel is after normalisation; "
            "name it, or leave darkness out with darkness_levels=[]"
        )
    levels = {"noise": options.noise_levels, "darkness": options.darkness_levels}
    return [
        _corruption(kind, stream, level, preprocessing)
        for kind in get_args(CorruptionKind)
        for stream in range(num_streams)
        for level in levels[kind]
    ]


def _corruption(
    kind: CorruptionKind, stream: int, level: float, preprocessing: Preprocessing | None
) -> Corruption:
    if preprocessing is None:
        return Corruption(kind, stream, level)
    statistics = preprocessing.statistics[stream]
    black = tuple(-m / s for m, s in zip(statistics.mean, statistics.std, strict=True))
    return Corruption(kind, stream, level, preprocessing.streams[stream].kind, black)


def _by_kind(
    names: Sequence[str],
    corruptions: Iterable[Corruption],
    measured: Iterable[Measured],
    intact: Measured,
) -> dict[CorruptionKind, dict[str, list[Measured]]]:
    """Sort measurements by kind, stream and level; each begins with the images as they are."""
    points: dict[CorruptionKind, dict[str, list[Measured]]] = {}
    for corruption, values in zip(corruptions, measured, strict=True):
        of_stream = points.setdefault(corruption.kind, {}).setdefault(
            names[corruption.stream], [{"level": 0.0, **intact}]
        )
        of_stream.append({"level": corruption.level, **values})
    return points
