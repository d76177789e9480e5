"""What a training step takes at any batch size and in any memory mode, told from two small ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar, get_args

import torch

from manystream.batch import StreamBatch
from manystream.memory import MemoryReport, measure
from manystream.models import StreamNetwork
from manystream.models.memory_modes import MemoryMode

_Name = TypeVar("_Name", bound=str)

_MEASURED_AT = (2, 4)
"""Batch sizes that a line is drawn through; with one sample a norm may do without statistics."""


@dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
        batch_size: samples B.
        image_size: height and width in pixels.
        autocast_dtype: precision of the forward pass; None is that of the parameters.
    """

    batch_size: int
    image_size: tuple[int, int]
    autocast_dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Need:
    """Bytes as a line over the batch size: ``base + per_sample · B``.

    Example:
        >>> need = Need.through(2, 30, 4, 50)
        >>> need.at(8), need.largest_batch(100)
        (90, 9)
    """

    base: float
    per_sample: float

    @classmethod
    def through(cls, first: int, first_bytes: int, second: int, second_bytes: int) -> Need:
        """The line through two batch sizes and their bytes."""
        slope = (second_bytes - first_bytes) / (second - first)
        return cls(first_bytes - slope * first, slope)

    def at(self, batch_size: int) -> int:
        """Bytes at a batch size."""
        return round(self.base + self.per_sample * batch_size)

    def largest_batch(self, available_bytes: float) -> int:
        """Samples that so many bytes are enough for; 0 if for none."""
        return max(int((available_bytes - self.base) / self.per_sample), 0)


@dataclass(frozen=True)
class StepNeeds:
    """What a network's training step takes, with every stream present.

    Attributes:
        peak: activations at their peak, of the mode that the network is in and each leaner one.
        kept_by_kind: what that mode keeps for backward, by kind.
        kept_by_layer: the same by layer.
        fixed_bytes: weights, buffers, gradients, and the two moments of AdamW.
    """

    peak: dict[MemoryMode, Need]
    kept_by_kind: dict[str, Need]
    kept_by_layer: dict[str, Need]
    fixed_bytes: int


def measure_needs(network: StreamNetwork, step: Step) -> StepNeeds:
    """Count what a step takes, on the CPU, at two small batch sizes.

    Args:
        network: the network, on the CPU; a copy of it is measured.
        step: image size and precision to measure at.
    """
    measured = {mode: _measure(network, step, mode) for mode in _modes_from(network)}
    first, second = next(iter(measured.values()))
    return StepNeeds(
        {
            mode: _line(a.peak_allocated_bytes, b.peak_allocated_bytes)
            for mode, (a, b) in measured.items()
        },
        _lines(first.kept_by_kind, second.kept_by_kind),
        _lines(first.kept_by_layer, second.kept_by_layer),
        _fixed_bytes(network),
    )


def _modes_from(network: StreamNetwork) -> tuple[MemoryMode, ...]:
    """The network's memory mode and those that keep less."""
    modes: tuple[MemoryMode, ...] = get_args(MemoryMode)
    return modes[modes.index(network.memory) :]


def _measure(
    network: StreamNetwork, step: Step, mode: MemoryMode
) -> tuple[MemoryReport, MemoryReport]:
    measured = copy.deepcopy(network)
    measured.memory = mode
    first, second = (
        measure(measured, noise_batch(network, replace(step, batch_size=b)), step.autocast_dtype)
        for b in _MEASURED_AT
    )
    return first, second


def noise_batch(network: StreamNetwork, step: Step) -> StreamBatch:
    """A batch to measure with: noise on every stream of every sample."""
    dtype = next(network.parameters()).dtype
    images = [
        torch.randn(step.batch_size, channels, *step.image_size, dtype=dtype)
        for channels in network.in_channels.values()
    ]
    target = torch.arange(step.batch_size) % network.num_classes
    return replace(network.to_batch(images), target=target)


def _line(first_bytes: int, second_bytes: int) -> Need:
    return Need.through(_MEASURED_AT[0], first_bytes, _MEASURED_AT[1], second_bytes)


def _lines(first: Mapping[_Name, int], second: Mapping[_Name, int]) -> dict[str, Need]:
    return {name: _line(first.get(name, 0), value) for name, value in second.items()}


def _fixed_bytes(network: StreamNetwork) -> int:
    parameters = sum(p.nbytes for p in network.parameters())
    return 4 * parameters + sum(b.nbytes for b in network.buffers())
