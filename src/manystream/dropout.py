"""What a training sample loses, by modality dropout, or with which subsets it is seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import combinations
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from manystream.choices import did_you_mean
from manystream.presence import Presence, Views

Schedule = Literal["ramp_up", "ramp_down"]


def scheduled_probability(
    epoch: int, rate: float, schedule: Schedule = "ramp_up", start: int = 0, ramp: int = 0
) -> float:
    r"""Probability that a sample is touched in an epoch.

    With start s, ramp R and final rate r: ``ramp_up`` is 0 before s, then
    :math:`r (e - s + 1) / R`, then r; ``ramp_down`` is 1 before s, then
    :math:`1 - (1 - r)(e - s + 1) / R`, then r. Without a ramp (R ≤ 0) it is r from s on.

    Args:
        epoch: epoch e, from 0.
        rate: final probability r.
        schedule: ``"ramp_up"`` or ``"ramp_down"``.
        start: first epoch s of the ramp.
        ramp: length R of the ramp in epochs.

    Raises:
        ValueError: if the rate is no probability or the schedule is unknown.

    Example:
        >>> [scheduled_probability(e, 0.4, start=1, ramp=2) for e in range(4)]
        [0.0, 0.2, 0.4, 0.4]
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"modality dropout rate is {rate}; expected a probability in [0, 1]")
    if schedule not in get_args(Schedule):
        raise ValueError(
            f"unknown schedule {schedule!r}; expected one of {', '.join(get_args(Schedule))}"
        )
    initial = 0.0 if schedule == "ramp_up" else 1.0
    if epoch < start:
        return initial
    if ramp <= 0 or epoch >= start + ramp - 1:
        return rate
    return initial + (rate - initial) * (epoch - start + 1) / ramp


class ModalityDropout:
    """Draws which present streams each sample keeps; at least one always stays.

    A sample is touched with the scheduled probability. A touched sample loses one stream, or up
    to ``max_blanked`` (their number uniform), chosen among those it has in proportion to their
    rates. The draw happens on the host, so no step waits for a device. It depends on seed, rank,
    epoch and number of the batch alone: batches that are prepared ahead leave no trace, and a run
    resumes exactly.

    Args:
        num_streams: number of streams M, at least 2.
        rate: final probability that a sample is touched; or one rate per stream, the probability
            that this stream is the one blanked, together at most 1.
        schedule: ``"ramp_up"`` or ``"ramp_down"``, see :func:`scheduled_probability`.
        start: first epoch of the ramp.
        ramp: length of the ramp in epochs.
        max_blanked: most streams blanked in one sample, 1 to M − 1.
        stratified: blank a fixed number of rows per batch and stream (with several blanked, per
            set of streams) instead of a random one, so that shapes repeat; it is rounded up or
            down at random, so that the probabilities stay the same.
        seed: seed of the draws.

    Attributes:
        epoch: the epoch whose probability :meth:`draw` uses; see :meth:`begin`.
        batch: number of the next batch in its epoch; each draw moves it on.
        rank: number of this process among those that train together; their draws differ.

    Raises:
        ValueError: if an argument is outside of what is named here.

    Example:
        >>> dropout = ModalityDropout(num_streams=2, rate=1.0)
        >>> dropout.draw(torch.ones(4, 2, dtype=torch.bool)).sum(dim=1).tolist()
        [1, 1, 1, 1]
    """

    def __init__(
        self,
        num_streams: int,
        rate: float | Sequence[float] = 0.2,
        *,
        schedule: Schedule = "ramp_up",
        start: int = 0,
        ramp: int = 0,
        max_blanked: int = 1,
        stratified: bool = False,
        seed: int = 0,
    ) -> None:
        self.rates = _stream_rates(num_streams, rate)
        if not 1 <= max_blanked < num_streams:
            raise ValueError(
                f"max_blanked is {max_blanked}; expected 1 to {num_streams - 1}, "
                "at least one stream stays"
            )
        self.rate = math.fsum(self.rates)
        self.schedule = schedule
        self.start = start
        self.ramp = ramp
        self.max_blanked = max_blanked
        self.stratified = stratified
        self.seed = seed
        self.epoch = 0
        self.batch = 0
        self.rank = 0
        self._generator = torch.Generator()
        self.probability(0)

    def begin(self, epoch: int, batch: int = 0) -> None:
        """Go to a batch of an epoch, both counted from 0."""
        self.epoch = epoch
        self.batch = batch

    def probability(self, epoch: int) -> float:
        """Probability that a sample is touched in this epoch."""
        return scheduled_probability(
            epoch, min(self.rate, 1.0), self.schedule, self.start, self.ramp
        )

    def draw(self, present: Tensor) -> Tensor:
        """Blank streams of a batch.

        Args:
            present: streams that the samples have, shape (B, M), bool, on the CPU.

        Returns:
            Streams that the samples keep, shape (B, M), bool.
        """
        self._generator.manual_seed(_mixed(self.seed, self.rank, self.epoch, self.batch))
        self.batch += 1
        kept = present.clone()
        patterns, group = present.unique(dim=0, return_inverse=True)
        for g, pattern in enumerate(patterns):
            samples = (group == g).nonzero().flatten()
            kept[samples] &= ~self._blanked(pattern, len(samples))
        return kept

    def _blanked(self, pattern: Tensor, num_samples: int) -> Tensor:
        """Draw for samples that have the same streams, shape (num_samples, M), bool."""
        subsets, shares = _subsets(tuple(pattern.tolist()), self.rates, self.max_blanked)
        limits = torch.tensor(shares, dtype=torch.float64).cumsum(0) * self.probability(self.epoch)
        chosen = torch.searchsorted(limits, self._uniform(num_samples), right=True)
        return torch.tensor([*subsets, (False,) * len(pattern)])[chosen]

    def _uniform(self, count: int) -> Tensor:
        """Uniform numbers in [0, 1): independent, or one in each of ``count`` equal strata."""
        if not self.stratified:
            return torch.rand(count, generator=self._generator, dtype=torch.float64)
        offset = torch.rand(1, generator=self._generator, dtype=torch.float64)
        return (torch.randperm(count, generator=self._generator) + offset) / count

    def state_dict(self) -> dict[str, int]:
        """Say where the draws are."""
        return {"seed": self.seed, "epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.seed = state["seed"]
        self.begin(state["epoch"], state["batch"])


def _mixed(*numbers: int) -> int:
    """Make one seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _stream_rates(num_streams: int, rate: float | Sequence[float]) -> tuple[float, ...]:
    if num_streams < 2:
        raise ValueError(
            f"modality dropout needs at least two streams; the model has {num_streams}"
        )
    rates = (rate / num_streams,) * num_streams if isinstance(rate, int | float) else tuple(rate)
    if len(rates) != num_streams:
        raise ValueError(f"{len(rates)} modality dropout rates for {num_streams} streams: {rates}")
    if not all(0 <= r <= 1 for r in rates) or math.fsum(rates) > 1 + 1e-9:
        raise ValueError(
            f"modality dropout rate is {rate}; expected a probability in [0, 1], or one per stream "
            "that together are at most 1"
        )
    return rates


@lru_cache(maxsize=1024)
def _subsets(
    pattern: tuple[bool, ...], rates: tuple[float, ...], max_blanked: int
) -> tuple[list[tuple[bool, ...]], list[float]]:
    """Sets of streams that a touched sample may lose, and the share of each.

    Every size has the same share; within a size a set's share is in proportion to the product of
    its streams' rates.
    """
    has = [m for m, p in enumerate(pattern) if p and rates[m] > 0]
    most = min(max_blanked, sum(pattern) - 1, len(has))
    sizes = [list(combinations(has, size)) for size in range(1, most + 1)]
    subsets, shares = [], []
    for sets in sizes:
        products = [math.prod(rates[m] for m in lost) for lost in sets]
        for lost, product in zip(sets, products, strict=True):
            subsets.append(tuple(m in lost for m in range(len(pattern))))
            shares.append(product / math.fsum(products) / len(sizes))
    return subsets, shares


def subset_views(
    stream_names: Sequence[str],
    subsets: Literal["all"] | int,
    weights: Mapping[str, float] | None = None,
) -> Callable[[Presence], Views]:
    """Make what says with which subsets of its streams each sample of a batch is seen.

    Args:
        stream_names: names of the network's streams.
        subsets: ``"all"``, or how many a sample is seen with, the one of all that it has among
            them, 2 to 2^M − 1.
        weights: how much a subset counts beside a sample's others, by the names of its streams,
            for example ``{"rgb": 2.0, "rgb + depth": 1.0}``; 1 where nothing is said.

    Raises:
        ValueError: if there is one stream only, the number is out of its range, or a subset does
            not exist or is named twice.

    Example:
        >>> see = subset_views(["rgb", "depth"], "all")
        >>> see(Presence.all_present(2, 2)).num_views
        6
    """
    most = (1 << len(stream_names)) - 1
    if len(stream_names) < 2:
        raise ValueError(
            f"subsets is {subsets!r}, but the network has one stream, {stream_names[0]}; leave "
            "subsets out"
        )
    if subsets != "all" and not 2 <= subsets <= most:
        raise ValueError(
            f"subsets is {subsets}; expected 'all', or 2 to {most} for the streams "
            f"{', '.join(stream_names)}"
        )
    numbered = {subset_bits(name, stream_names): w for name, w in (weights or {}).items()}
    if len(numbered) < len(weights or {}):
        raise ValueError(
            f"subset_weights names a subset twice: {', '.join(weights or {})}; expected each once, "
            "its streams in any order"
        )
    per_sample = None if subsets == "all" else subsets
    return partial(Views.with_subsets, per_sample=per_sample, weights=numbered)


def subset_bits(name: str, stream_names: Sequence[str]) -> int:
    """Return the bits of the streams that a subset's name joins by ``+``.

    Raises:
        ValueError: if a stream does not exist.

    Example:
        >>> subset_bits("depth + rgb", ["rgb", "depth"])
        3
    """
    bits = 0
    for part in map(str.strip, name.split("+")):
        if part not in stream_names:
            raise ValueError(
                f"subset {name!r} names stream {part!r}; the network's streams are "
                f"{', '.join(stream_names)}{did_you_mean(part, stream_names)}"
            )
        bits |= 1 << stream_names.index(part)
    return bits
