"""How well a network holds when sensors fail: subsets, losses at random, noise, darkness."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from manystream.data.preprocessing import Preprocessing
from manystream.models import StreamNetwork
from manystream.training.evaluation.answers import Answers, Condition, Pass, Subset, collect_answers
from manystream.training.evaluation.corruptions import Corruption, CorruptionKind
from manystream.training.evaluation.evaluate import Measured, measure_subsets, subsets_of
from manystream.training.evaluation.random_loss import random_loss_curve
from manystream.training.evaluation.robustness import Robustness
from manystream.training.recipe.ranges import check_at_least


@dataclass
class ConditionOptions:
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
        for name, most in (("loss_rates", 1.0), ("noise_levels", None), ("darkness_levels", 1.0)):
            for value in getattr(self, name):
                if not 0 <= value <= (math.inf if most is None else most):
                    allowed = "0 or more" if most is None else "0 to 1"
                    raise ValueError(f"{name} has {value}; expected numbers of {allowed}")
        check_at_least(self, 1, "loss_draws")
        check_at_least(self, 0, "seed")


def evaluate_conditions(
    network: StreamNetwork,
    loader: Iterable[Any],
    options: ConditionOptions | None = None,
    *,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    accelerator: str = "auto",
    progress: bool = False,
) -> Robustness:
    """Measure a network under every condition, reading each batch once.

    Args:
        network: the network.
        loader: batches as :func:`read_batch` takes them, with targets.
        options: which conditions.
        preprocessing: how the images were normalised, also as plain values; needed for darkness,
            and for noise to spare depth pixels without a reading.
        accelerator: device, by Lightning's names.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if a batch does not fit, the loader is empty, or darkness is asked for without
            ``preprocessing``.
    """
    options = options or ConditionOptions()
    if isinstance(preprocessing, Mapping):
        preprocessing = Preprocessing.from_dict(preprocessing)
    subsets = subsets_of(network)
    corruptions = corruptions_of(options, network.num_streams, preprocessing)
    everything = (True,) * network.num_streams
    conditions = [Condition(kept) for kept in subsets.values()]
    conditions += [Condition(everything, corruption) for corruption in corruptions]
    done = collect_answers(
        network,
        loader,
        conditions,
        accelerator=accelerator,
        progress=progress,
        seed=options.seed,
    )
    if not len(done.present):
        raise ValueError("the loader has no sample; expected at least one")
    of_subsets = dict(zip(subsets.values(), done.answers, strict=False))
    corrupted = done.answers[len(subsets) :]
    return Robustness(
        measure_subsets(subsets, of_subsets),
        _random_loss(of_subsets, done, options),
        _curves(network, corruptions, corrupted, of_subsets[everything]),
    )


def _random_loss(
    answers: Mapping[Subset, Answers], done: Pass, options: ConditionOptions
) -> list[Measured]:
    if done.present.shape[1] < 2:
        return []
    return random_loss_curve(
        answers, done.present, options.loss_rates, options.loss_draws, options.seed
    )


def corruptions_of(
    options: ConditionOptions, num_streams: int, preprocessing: Preprocessing | None
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


def _curves(
    network: StreamNetwork,
    corruptions: Iterable[Corruption],
    answers: Iterable[Answers],
    intact: Answers,
) -> dict[CorruptionKind, dict[str, list[Measured]]]:
    """Measurements by kind, stream and level; each begins with the images as they are."""
    curves: dict[CorruptionKind, dict[str, list[Measured]]] = {}
    for corruption, answer in zip(corruptions, answers, strict=True):
        by_stream = curves.setdefault(corruption.kind, {})
        points = by_stream.setdefault(
            network.stream_names[corruption.stream], [{"level": 0.0, **intact.measure()}]
        )
        points.append({"level": corruption.level, **answer.measure()})
    return curves
