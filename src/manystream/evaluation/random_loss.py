"""Metrics where samples lose streams at random, told from the answers for every subset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from manystream.batch import StreamBatch, map_target
from manystream.dropout import ModalityDropout
from manystream.evaluation.inference import SubsetAnswer
from manystream.evaluation.measurement import Measured
from manystream.evaluation.options import EvaluationOptions
from manystream.presence import upload
from manystream.tasks import Task


class RandomLoss:
    """Draws which streams samples lose, and measures the answers for those that stay.

    A network answers for a sample from the streams that it has, whatever else is in the batch; so
    the answer for a drawn set of streams is the one already given for that subset. At rate r a
    sample loses streams with probability r: a uniformly drawn number of them, at least one of those
    that it has always stays. Every rate draws the same numbers, so that the curve is smooth.

    Args:
        task: what is measured.
        num_streams: streams M of the network; of one, none can be lost.
        options: rates, number of draws and seed.
        device: where the batches are.
    """

    def __init__(
        self, task: Task, num_streams: int, options: EvaluationOptions, device: torch.device
    ) -> None:
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
        self._num_batches = 0

    def update(self, answers: Mapping[int, SubsetAnswer], batch: StreamBatch) -> None:
        """Draw for a batch, given the answers for every subset."""
        if not self._rates:
            return
        outputs = torch.cat([output for output, _ in answers.values()])
        predictions = self._task.predict(outputs)
        rows = upload(_row_of(answers, self._draw(batch.presence.mask)), outputs.device)
        for metrics, kept in zip(chain(*self._draws), rows, strict=True):
            metrics.update(_rows_taken(predictions, kept), batch.target)

    def compute(self) -> list[Measured]:
        """Give mean and standard deviation of every metric over the draws, for each rate."""
        return [
            {"rate": rate, **_summary([metrics.compute() for metrics in draws])}
            for rate, draws in zip(self._rates, self._draws, strict=True)
        ]

    def _draw(self, present: Tensor) -> Tensor:
        """Draw the subsets that samples keep, as bits, (rates times draws, B)."""
        kept = []
        for dropout, draws in zip(self._dropouts, self._draws, strict=True):
            dropout.begin(self._num_batches)
            kept += [dropout.draw(present) for _ in draws]
        self._num_batches += 1
        return (torch.stack(kept) * self._bits).sum(dim=2)


def _row_of(answers: Mapping[int, SubsetAnswer], kept: Tensor) -> Tensor:
    """Find each sample's answer for a subset, (..., B), among all answers one after the other."""
    rows = torch.zeros(max(answers) + 1, kept.shape[-1], dtype=torch.int64)
    start = 0
    for subset, (output, samples) in answers.items():
        rows[subset, samples] = torch.arange(start, start + len(output))
        start += len(output)
    return rows[kept, torch.arange(kept.shape[-1])]


def _rows_taken(predictions: Any, rows: Tensor) -> Any:
    return map_target(lambda t: t.index_select(0, rows), predictions)


def _summary(draws: Sequence[Mapping[str, Tensor]]) -> Measured:
    values = {str(name): [draw[name].item() for draw in draws] for name in draws[0]}
    return {name: fmean(v) for name, v in values.items()} | {
        f"{name}_std": pstdev(v) for name, v in values.items()
    }
