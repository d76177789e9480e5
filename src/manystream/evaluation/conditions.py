"""How well a network holds when sensors fail: subsets, losses at random, noise, darkness."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from statistics import fmean, pstdev
from typing import Any, get_args

import torch
from torch import Tensor

from manystream.data.preprocessing import Preprocessing
from manystream.dropout import ModalityDropout
from manystream.evaluation.corruptions import Corruption, CorruptionKind
from manystream.evaluation.inference import Measured, Measurement, answer, inferring, read
from manystream.evaluation.options import EvaluationOptions
from manystream.evaluation.subsets import Answers, Subset, measure_subset, subsets_of
from manystream.models import StreamNetwork
from manystream.tasks import Task

LEVEL_UNITS: dict[CorruptionKind, str] = {
    "noise": "standard deviations of noise",
    "darkness": "light, or depth readings, lost",
}
"""What the levels of a corruption count."""


@dataclass(frozen=True)
class Curve:
    """The task's first metric at several levels of one condition.

    Attributes:
        unit: what the levels count.
        levels: one number per point.
        values: one per level.
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
    """A network's measurements under every condition.

    Attributes:
        subsets: by the streams that are left, joined by " + ", what
            :func:`manystream.evaluation.evaluate` gives. All streams come first.
        random_loss: for each ``rate`` of loss, the task's metrics, mean over draws, and their
            standard deviations with ``_std`` at the end; empty with one stream.
        corruptions: by kind, by stream: the same as of a subset, and ``level``, beginning at 0.
        metric: the metric that curves show.
    """

    subsets: dict[str, Measured]
    random_loss: list[Measured] = field(default_factory=list)
    corruptions: dict[CorruptionKind, dict[str, list[Measured]]] = field(default_factory=dict)
    metric: str = field(kw_only=True)

    def curves(self) -> dict[str, Curve]:
        """Every condition but the subsets as a curve, by its title."""
        curves = {}
        if self.random_loss:
            rates, values = self._columns(self.random_loss, "rate")
            spread = [point[f"{self.metric}_std"] for point in self.random_loss]
            unit = "share of samples that lose streams"
            curves["streams lost at random"] = Curve(unit, rates, values, spread)
        for kind, by_stream in self.corruptions.items():
            for stream, points in by_stream.items():
                levels, values = self._columns(points, "level")
                curves[f"{kind} on {stream}"] = Curve(
                    LEVEL_UNITS[kind], levels, values, without=self._without(stream)
                )
        return curves

    def _without(self, stream: str) -> float | None:
        names = next(iter(self.subsets)).split(" + ")
        left = self.subsets.get(" + ".join(name for name in names if name != stream))
        return None if left is None else left[self.metric]

    def _columns(self, points: Sequence[Measured], level: str) -> tuple[list[float], list[float]]:
        return [p[level] for p in points], [p[self.metric] for p in points]


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
        loader: batches as :func:`manystream.streams.read_batch` takes them, with targets.
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
    subsets = subsets_of(network)
    corruptions = corruptions_of(options, network.num_streams, preprocessing)
    with inferring(network, accelerator) as device:
        by_subset = {name: Measurement(task, device) for name in subsets}
        corrupted = [Measurement(task, device) for _ in corruptions]
        # Each has random numbers of its own, so that leaving one out does not change another.
        seeded = [torch.Generator(device).manual_seed(options.seed) for _ in corruptions]
        at_random = _RandomLoss(task, list(subsets.values()), options, device)
        for batch in read(network, loader, device, task=task, progress=progress):
            answers = [
                measure_subset(by_subset[name], network, batch, kept)
                for name, kept in subsets.items()
            ]
            at_random.update(answers, batch.presence.mask, batch.target)
            for corruption, generator, measurement in zip(
                corruptions, seeded, corrupted, strict=True
            ):
                changed = corruption.apply(batch, generator)
                measurement.update(answer(network, changed), batch.target)
        measured = {name: m.compute() for name, m in by_subset.items()}
        intact = next(iter(measured.values()))
        if not intact:
            raise ValueError("the loader has no sample; expected at least one")
        return Robustness(
            {name: values for name, values in measured.items() if values},
            at_random.compute(),
            _by_kind(network.stream_names, corruptions, [m.compute() for m in corrupted], intact),
            metric=task.primary_metric,
        )


class _RandomLoss:
    """Metrics where samples lose streams at random, told from the answers for every subset.

    A network answers for a sample from the streams that it has, whatever else is in the batch; so
    the answer for a drawn set of streams is the one already given for that subset. At rate r a
    sample loses streams with probability r: a uniformly drawn number of them, at least one of those
    that it has always stays. Every rate draws the same numbers, so that the curve is smooth.
    """

    def __init__(
        self,
        task: Task,
        subsets: Sequence[Subset],
        options: EvaluationOptions,
        device: torch.device,
    ) -> None:
        num_streams = len(subsets[0])
        self._task = task
        self._rates = options.loss_rates if num_streams > 1 else []
        self._dropouts = [
            ModalityDropout(num_streams, r, max_blanked=num_streams - 1, seed=options.seed)
            for r in self._rates
        ]
        self._draws = [
            [task.metrics().to(device) for _ in range(options.loss_draws)] for _ in self._rates
        ]
        self._bits = 2 ** torch.arange(num_streams)
        # The subset's number by the bits of its streams.
        self._number = torch.zeros(2**num_streams, dtype=torch.int64)
        for number, kept in enumerate(subsets):
            self._number[(torch.tensor(kept) * self._bits).sum()] = number
        self._num_batches = 0

    def update(
        self,
        answers: Sequence[Answers | None],
        present: Tensor,
        target: Any,
    ) -> None:
        """Draw for a batch.

        Args:
            answers: for each subset, the outputs of the samples that have any of it, and which.
            present: which streams the samples have, (B, M), bool.
            target: of the samples.
        """
        if not self._rates:
            return
        outputs = _spread(answers, len(present))
        samples = torch.arange(len(present), device=outputs.device)
        drawn = self._draw(present).to(outputs.device)
        for metrics, kept in zip(chain(*self._draws), drawn, strict=True):
            metrics.update(self._task.predict(outputs[kept, samples]), target)

    def _draw(self, present: Tensor) -> Tensor:
        """Numbers of the subsets that samples keep, (rates times draws, B)."""
        kept = []
        for dropout, draws in zip(self._dropouts, self._draws, strict=True):
            dropout.begin(self._num_batches)
            kept += [dropout.draw(present) for _ in draws]
        self._num_batches += 1
        return self._number[(torch.stack(kept) * self._bits).sum(dim=2)]

    def compute(self) -> list[Measured]:
        """For each rate, mean and standard deviation of every metric over the draws."""
        return [
            {"rate": rate, **_summary([metrics.compute() for metrics in draws])}
            for rate, draws in zip(self._rates, self._draws, strict=True)
        ]


def _spread(answers: Sequence[Answers | None], num_samples: int) -> Tensor:
    """Outputs by subset and sample, (S, B, ...); zero where a sample has nothing of the subset."""
    some = next(answered for answered in answers if answered is not None)[0]
    outputs = some.new_zeros(len(answers), num_samples, *some.shape[1:])
    for place, answered in zip(outputs, answers, strict=True):
        if answered is not None:
            output, samples = answered
            place[samples] = output
    return outputs


def _summary(draws: Sequence[Mapping[str, Tensor]]) -> Measured:
    values = {str(name): [draw[name].item() for draw in draws] for name in draws[0]}
    return {name: fmean(v) for name, v in values.items()} | {
        f"{name}_std": pstdev(v) for name, v in values.items()
    }


def corruptions_of(
    options: EvaluationOptions, num_streams: int, preprocessing: Preprocessing | None
) -> list[Corruption]:
    """Every corruption that is asked for, by kind, stream and level.

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
    """Measurements by kind, stream and level; each begins with the images as they are."""
    points: dict[CorruptionKind, dict[str, list[Measured]]] = {}
    for corruption, values in zip(corruptions, measured, strict=True):
        of_stream = points.setdefault(corruption.kind, {}).setdefault(
            names[corruption.stream], [{"level": 0.0, **intact}]
        )
        of_stream.append({"level": corruption.level, **values})
    return points
