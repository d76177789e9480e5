"""What is measured of a network's answers, and on which samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from manystream.batch import StreamBatch, map_target, select
from manystream.evaluation.inference import SubsetAnswer
from manystream.tasks import Task

Measured = dict[str, float]
"""What is measured under one condition: ``loss``, the task's metrics, where there
are such their chance levels (``accuracy_chance``), and ``num_samples``."""


@dataclass(frozen=True)
class Subsets(Mapping[str, Measured]):
    """Measurements for every subset of the streams, by their names joined by " + ".

    It is a mapping to the measurements that may be compared: all are of the same samples.

    Attributes:
        same_samples: every subset on the samples that have every stream; empty if there are none.
            All streams come first.
        as_they_are: each subset on the samples that have all of its streams, others for each.
        as_they_come: every sample with the streams that it has.
    """

    same_samples: dict[str, Measured]
    as_they_are: dict[str, Measured]
    as_they_come: Measured

    def __getitem__(self, streams: str) -> Measured:
        if not self.same_samples:
            raise KeyError(
                f"{streams}: no sample has every stream, so subsets cannot be compared on the same "
                "samples; as_they_are has each on the samples that have its streams"
            )
        return self.same_samples[streams]

    def __iter__(self) -> Iterator[str]:
        return iter(self.same_samples)

    def __len__(self) -> int:
        return len(self.same_samples)

    @property
    def all_complete(self) -> bool:
        """Whether every sample has every stream, so that all measurements are of the same."""
        whole = next(iter(self.same_samples.values()), None)
        return whole is not None and whole["num_samples"] == self.as_they_come["num_samples"]

    @property
    def shown(self) -> dict[str, Measured]:
        """The measurements on the same samples, or where there are none those as they are."""
        return self.same_samples or self.as_they_are


class Measurement:
    """Loss, metrics and chance levels of a task, gathered over batches.

    Args:
        task: what is measured.
        device: where the batches are.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        self._task = task
        self._metrics = task.evaluation_metrics().to(device)
        chance = task.chance_level()
        self._chance = None if chance is None else chance.to(device)
        self._losses: list[Tensor] = []
        self._num_samples = 0

    def update(self, output: Tensor, target: Any) -> None:
        """Take in the answers to some samples, without waiting for the device."""
        self._metrics.update(self._task.predict(output), target)
        if self._chance is not None:
            self._chance.update(target)
        self._losses.append(self._task.loss(output, target).mean() * len(output))
        self._num_samples += len(output)

    def copy(self) -> Measurement:
        """Copy what was gathered so far, to go on with other samples."""
        other = copy(self)
        other._metrics, other._chance = deepcopy(self._metrics), deepcopy(self._chance)
        other._losses = list(self._losses)
        return other

    def compute(self) -> Measured:
        """Give what was measured; nothing if there was no sample."""
        if self._num_samples == 0:
            return {}
        chance = {} if self._chance is None else self._chance.compute()
        return {
            "loss": math.fsum(loss.item() for loss in self._losses) / self._num_samples,
            **{str(name): value.item() for name, value in self._metrics.compute().items()},
            **{f"{name}_chance": value.item() for name, value in chance.items()},
            "num_samples": float(self._num_samples),
        }


class MeasurementPair:
    """A measurement of the samples that have every stream, and one of all samples.

    They are one as long as no sample lacks a stream, which costs nothing then.

    Attributes:
        complete: of the samples that have every stream.
        every: of all.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        self.complete = self.every = Measurement(task, device)

    def update(self, output: Tensor, target: Any, is_complete: Tensor) -> None:
        """Take in the answers to n samples; ``is_complete`` is (n,), bool, on the CPU."""
        if is_complete.all():
            self.complete.update(output, target)
            if self.every is not self.complete:
                self.every.update(output, target)
            return
        if self.every is self.complete:
            self.every = self.complete.copy()
        self.every.update(output, target)
        if is_complete.any():
            self.complete.update(*_pick(output, target, is_complete.nonzero().flatten()))


class SubsetMeasurement:
    """Measures every subset of the streams from the answers for each.

    Args:
        task: what is measured.
        stream_names: the network's streams.
        device: where the batches are.
    """

    def __init__(self, task: Task, stream_names: Sequence[str], device: torch.device) -> None:
        self._names = {bits: name for name, bits in numbered_subsets(stream_names).items()}
        self._pairs = {subset: MeasurementPair(task, device) for subset in self._names}
        self._everything = 2 ** len(stream_names) - 1
        self._as_they_come: Measurement | None = None

    def update(self, answers: Mapping[int, SubsetAnswer], batch: StreamBatch) -> None:
        """Take in the answers to a batch, see :func:`answers_by_subset`."""
        mask = batch.presence.mask
        is_complete = mask.all(dim=1)
        if self._as_they_come is None and not is_complete.all():
            self._as_they_come = self._pairs[self._everything].complete.copy()
        pattern = mask.long() @ (2 ** torch.arange(mask.shape[1]))
        everyone = torch.arange(len(batch))
        for subset, (output, samples) in answers.items():
            in_order = torch.equal(samples, everyone)
            target = batch.target if in_order else take(batch.target, samples)
            self._pairs[subset].update(output, target, is_complete[samples])
            if self._as_they_come is not None:
                whole = (pattern[samples] == subset).nonzero().flatten()
                if len(whole):
                    self._as_they_come.update(*_pick(output, target, whole))

    def compute(self) -> Subsets:
        """Give what was measured; a subset that no sample has is left out."""
        complete = self._pairs[self._everything].complete
        same = {self._names[s]: pair.complete.compute() for s, pair in self._pairs.items()}
        every = {self._names[s]: pair.every.compute() for s, pair in self._pairs.items()}
        return Subsets(
            {name: values for name, values in same.items() if values},
            {name: values for name, values in every.items() if values},
            (self._as_they_come or complete).compute(),
        )


def numbered_subsets(stream_names: Sequence[str]) -> dict[str, int]:
    """Number every subset that is not empty by the bits of its streams, the largest first.

    Example:
        >>> numbered_subsets(["rgb", "depth"])
        {'rgb + depth': 3, 'rgb': 1, 'depth': 2}
    """
    numbers = range(len(stream_names))
    subsets = [s for size in range(len(numbers), 0, -1) for s in combinations(numbers, size)]
    return {
        " + ".join(stream_names[m] for m in kept): sum(1 << m for m in kept) for kept in subsets
    }


def take(target: Any, samples: Tensor) -> Any:
    """Take the targets of some samples, by their numbers."""
    return map_target(lambda t: select(t, samples), target)


def _pick(output: Tensor, target: Any, index: Tensor) -> tuple[Tensor, Any]:
    return select(output, index), take(target, index)
