"""The batch sampler: it decides which streams a sample keeps before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

Selection = Callable[[Tensor], Tensor]
"""From the streams samples have to those they keep, both (B, M) bool; a modality dropout's draw."""


@dataclass(frozen=True)
class SampleKey:
    """What a sampler asks of a data set.

    Attributes:
        index: number of the sample.
        kept: for each stream, whether to read it.
        epoch: epoch, which with the sample's number decides its augmentation.
    """

    index: int
    kept: tuple[bool, ...]
    epoch: int = 0


class StreamBatchSampler(Sampler[list[SampleKey]]):
    """Batches of sample keys, shuffled or in order.

    Args:
        present: which streams each sample has, shape (N, M), bool.
        batch_size: samples per batch and process.
        shuffle: whether the order is drawn anew each epoch, from ``seed`` and the epoch.
        drop_last: whether a smaller last batch is left out.
        seed: seed of the order.

    Attributes:
        select: which streams the samples of a batch keep; a sample that keeps none is left out.
            None keeps all.
        stratified: whether each batch has about its share of every pattern of streams, so that the
            numbers of rows seldom change from batch to batch.
        epoch: the epoch, set by the training loop.
        start: batches that the next pass leaves out, for a run that goes on within an epoch.
        rank: number of this process among those that train together; see :func:`shared`.
        world_size: how many these are.
        even: whether all of them must get a batch in every step, as in training; samples that are
            too few for that are left out.
    """

    def __init__(
        self,
        present: Tensor,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        self.present = present
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.select: Selection | None = None
        self.stratified = False
        self.epoch = 0
        self.start = 0
        self.rank = 0
        self.world_size = 1
        self.even = False

    def __len__(self) -> int:
        full, rest = divmod(len(self.present), self.batch_size * self.world_size)
        enough = rest >= (self.world_size if self.even else 1)
        return full + (enough and not (self.drop_last and full))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        start, self.start = self.start, 0
        together = self._order().split(self.batch_size * self.world_size)
        for joined in together[start : len(self)]:
            indices = self._own(joined)
            kept = self.present[indices]
            kept = kept if self.select is None else self.select(kept)
            batch = [
                SampleKey(index, tuple(row), self.epoch)
                for index, row in zip(indices.tolist(), kept.tolist(), strict=True)
                if any(row)
            ]
            if batch:
                yield batch

    def _own(self, joined: Tensor) -> Tensor:
        """Return this process's part of what all get in a step; the first may have one more."""
        if self.stratified:  # where patterns take turns, every second sample would be of one alone
            return joined.tensor_split(self.world_size)[self.rank]
        return joined[self.rank :: self.world_size]

    def _order(self) -> Tensor:
        order = torch.arange(len(self.present))
        if self.shuffle:
            # Seeded by epoch, so that an epoch can be repeated without those before it.
            rng = np.random.default_rng((self.seed, self.epoch))
            order = torch.from_numpy(rng.permutation(len(self.present)))
        return order[_evenly_spread(self.present[order])] if self.stratified else order


def _evenly_spread(present: Tensor) -> Tensor:
    """Give an order in which the samples of every pattern follow each other at even distances."""
    _, pattern, counts = present.unique(dim=0, return_inverse=True, return_counts=True)
    place = torch.empty(len(present), dtype=torch.float64)
    for number, count in enumerate(counts.tolist()):
        place[pattern == number] = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return place.argsort(stable=True)


def own_sampler(loader: Iterable[Any] | None) -> StreamBatchSampler | None:
    """Return the sampler of a loader of ours; None for any other loader."""
    sampler = getattr(loader, "batch_sampler", None)
    return sampler if isinstance(sampler, StreamBatchSampler) else None


@contextmanager
def select_before_reading(loader: Iterable[Any], select: Selection | None) -> Iterator[None]:
    """Have a loader of ours leave what ``select`` does not keep unread.

    Any other loader is left as it is.

    Args:
        loader: batches.
        select: what the samples of a batch keep; None keeps all.
    """
    with _changed(loader, "select", select):
        yield


@contextmanager
def stratified(loader: Iterable[Any]) -> Iterator[None]:
    """Have a loader of ours give each batch its share of every pattern of streams.

    Any other loader is left as it is.

    Args:
        loader: batches.
    """
    with _changed(loader, "stratified", True):
        yield


@contextmanager
def _changed(loader: Iterable[Any], name: str, value: Any) -> Iterator[None]:
    """Give the sampler of a loader of ours another value of an attribute, for a while."""
    sampler = own_sampler(loader)
    if sampler is None:
        yield
        return
    before = getattr(sampler, name)
    setattr(sampler, name, value)
    try:
        yield
    finally:
        setattr(sampler, name, before)


@contextmanager
def shared(
    loader: Iterable[Any] | None, rank: int, world_size: int, *, even: bool = True
) -> Iterator[None]:
    """Have a loader of ours serve one of several processes.

    Together, the batches of one step are what a single process would have seen at ``world_size``
    times the batch size. Any other loader is left as it is.

    Args:
        loader: batches.
        rank: number of this process.
        world_size: number of processes.
        even: whether all must get the same number of batches, as in training; a last step that has
            no sample for some of them is left out then.

    Raises:
        ValueError: if there are fewer samples than processes.
    """
    sampler = own_sampler(loader)
    if sampler is None:
        yield
        return
    if len(sampler.present) < world_size:
        raise ValueError(
            f"{len(sampler.present)} samples for {world_size} processes; expected at least one each"
        )
    sampler.rank, sampler.world_size, sampler.even = rank, world_size, even
    try:
        yield
    finally:
        sampler.rank, sampler.world_size, sampler.even = 0, 1, False
