"""Accuracy when samples lose streams at random, told from what was answered for every subset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean, pstdev

import torch
from torch import Tensor

from manystream.dropout import ModalityDropout
from manystream.training.evaluation.answers import Answers, Subset


def random_loss_curve(
    answers: Mapping[Subset, Answers],
    present: Tensor,
    rates: Iterable[float],
    num_draws: int,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Measure at several rates, without asking the network again.

    A network answers for a sample from the streams that it has, whatever else is in the batch; so
    the answer for a drawn set of streams is the one already given for that subset. At rate r a
    sample loses streams with probability r: a uniformly drawn number of them, at least one of those
    that it has always stays (:class:`manystream.dropout.ModalityDropout`).

    Args:
        answers: of every subset of the M streams.
        present: which streams each sample has, shape (N, M), bool.
        rates: probabilities that a sample loses something.
        num_draws: times that the losses are drawn.
        seed: of the draws; every rate draws the same numbers, so that the curve is smooth.

    Returns:
        For each rate: ``rate``, the mean over draws of ``mean_class_accuracy`` and
        ``accuracy``, and their standard deviation with ``_std`` at the end.
    """
    return [{"rate": r, **_at_rate(answers, present, r, num_draws, seed)} for r in rates]


def _at_rate(
    answers: Mapping[Subset, Answers], present: Tensor, rate: float, num_draws: int, seed: int
) -> dict[str, float]:
    num_streams = present.shape[1]
    dropout = ModalityDropout(num_streams, rate, max_blanked=num_streams - 1, seed=seed)
    draws = [_pick(answers, dropout.draw(present)).measure() for _ in range(num_draws)]
    values = {name: [d[name] for d in draws] for name in ("mean_class_accuracy", "accuracy")}
    return {name: fmean(v) for name, v in values.items()} | {
        f"{name}_std": pstdev(v) for name, v in values.items()
    }


def _pick(answers: Mapping[Subset, Answers], kept: Tensor) -> Answers:
    """Every sample's answer from the streams that it keeps, ``kept`` being (N, M)."""
    some = next(iter(answers.values()))
    predicted, loss = some.predicted.clone(), some.loss.clone()
    for subset in {tuple(row) for row in kept.unique(dim=0).tolist()}:
        samples = (kept == torch.tensor(subset)).all(dim=1)
        predicted[samples] = answers[subset].predicted[samples]
        loss[samples] = answers[subset].loss[samples]
    return Answers(predicted, loss, some.target, some.num_classes)
