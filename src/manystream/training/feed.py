"""Feed a process its training batches, epoch by epoch, from wherever a run goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
)

from manystream.data.sampler import own_sampler
from manystream.training.checkpoints import random_state, set_random_state
from manystream.training.distributed import Vote
from manystream.training.trainer import Batches

_BEGINS_ANEW = "give a list, a DataLoader, or an object whose __iter__ begins anew"


@dataclass(frozen=True)
class _Position:
    batch: int
    random_before: dict[str, Any]
    random_now: dict[str, Any]


class Feed(Batches):
    """Batches of which an epoch can be entered in its middle.

    A loader of ours leaves out what was done already; any other reads it again, so that its own
    random numbers are what they were.

    Args:
        loader: batches.
        name: of the loader, for messages.

    Attributes:
        random_before: random state from which the current epoch's batches were begun.
    """

    def __init__(self, loader: Iterable[Any], name: str = "train_loader") -> None:
        super().__init__(loader)
        self.name = name
        self.random_before = random_state()
        self._position: _Position | None = None
        self._has_given = False

    @property
    def batch_sampler(self) -> Any:
        """Find the loader's own, if it has one."""
        return getattr(self.loader, "batch_sampler", None)

    def __iter__(self) -> Iterator[Any]:
        """Give an epoch's batches.

        Raises:
            ValueError: if there are none, and there were some in an epoch before.
        """
        had_given, is_empty = self._has_given, True
        for batch in self._epoch():
            self._has_given, is_empty = True, False
            yield batch
        if had_given and is_empty:
            raise ValueError(
                f"{self.name} has no batch in an epoch after the first; {_BEGINS_ANEW}"
            )

    def _epoch(self) -> Iterator[Any]:
        position, self._position = self._position, None
        if position is None:
            self.random_before = random_state()
            yield from self._begin()
            return
        self.random_before = position.random_before
        set_random_state(position.random_before)
        batches = self._begin()
        if position.batch > 0:
            prefetched = self._go_to(position.batch, batches)
            set_random_state(position.random_now)
            yield from prefetched
        yield from batches

    def _begin(self) -> Iterator[Any]:
        before = random_state()
        batches = iter(self.loader)
        if getattr(self.loader, "persistent_workers", False):
            set_random_state(before)  # they draw a seed at their start only, whenever that is
        return batches

    def _go_to(self, batch: int, batches: Iterator[Any]) -> list[Any]:
        """Leave out what is done, and return what Lightning had prefetched."""
        if own_sampler(self) is None:
            next(islice(batches, batch, batch), None)
        try:
            len(self)
        except TypeError:  # it looks for the end of a loader without a length
            return list(islice(batches, 1))
        return []

    def enter(self, batch: int, random_before: dict[str, Any], random_now: dict[str, Any]) -> None:
        """Have the next pass begin within an epoch.

        Args:
            batch: batches that are done.
            random_before: random state from which they were begun.
            random_now: random state after them.
        """
        self._position = _Position(batch, random_before, random_now)

    def state_dict(self) -> dict[str, Any]:
        """Give nothing, but to Lightning a sign that an epoch can be entered in its middle."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: :meth:`enter` says where."""


def share_of(
    loader: Iterable[Any],
    rank: int,
    world_size: int,
    *,
    seed: int = 0,
    even: bool = True,
    device: torch.device | None = None,
) -> Iterable[Any]:
    """Give one of several processes its share of a loader.

    A loader of ours shares by itself, see :func:`manystream.data.sampler.shared`. A DataLoader that
    shuffles a data set takes torch's DistributedSampler; of any other the batches are dealt out in
    turn, and only an iterable that cannot be indexed is read whole by every process. Where it gives
    some less than others, an epoch ends for all with the first that has no more.

    Args:
        loader: batches.
        rank: number of this process.
        world_size: number of processes.
        seed: seed of the common order.
        even: whether all must get the same number, as in training; a remainder is left out then.
        device: of the processes' group; needed where ``even``.
    """
    if world_size == 1 or own_sampler(loader) is not None:
        return loader
    indexed = type(loader) is DataLoader and not isinstance(loader.dataset, IterableDataset)
    if not isinstance(loader, DataLoader) or not indexed or loader.batch_sampler is None:
        dealt = Dealt(loader, rank, world_size, even=even)
        return dealt if isinstance(loader, Sequence) or device is None else Evened(dealt, device)
    if not (isinstance(loader.sampler, RandomSampler) and even):
        dealt = Dealt(loader.batch_sampler, rank, world_size, even=even)
        return _rebuilt(loader, batch_sampler=dealt)
    last = {"drop_last": loader.drop_last}
    common: Sampler[Any] = DistributedSampler(loader.dataset, world_size, rank, seed=seed, **last)
    return _rebuilt(loader, batch_size=loader.batch_size, sampler=common, **last)


def check_lasts(loader: Iterable[Any] | None, epochs: int, name: str) -> None:
    """Refuse an iterator, such as a generator, for more than one epoch.

    Raises:
        ValueError: naming the loader.
    """
    if epochs > 1 and isinstance(loader, Iterator):
        raise ValueError(
            f"{name} is a {type(loader).__name__}, which gives its batches once, and epochs is "
            f"{epochs}; {_BEGINS_ANEW}"
        )


class Dealt(Sampler[Any]):
    """Every ``world_size``-th item, from the ``rank``-th on.

    Args:
        items: the same for all processes.
        rank: number of this process.
        world_size: number of processes.
        even: whether a remainder that does not go round is left out.
    """

    def __init__(self, items: Iterable[Any], rank: int, world_size: int, *, even: bool) -> None:
        self.items, self.rank, self.world_size, self.even = items, rank, world_size, even

    def __len__(self) -> int:
        full, rest = divmod(len(self.items), self.world_size)  # type: ignore[arg-type]
        return full + (rest > self.rank and not self.even)

    def __iter__(self) -> Iterator[Any]:
        items = iter(self.items)
        while round_ := list(islice(items, self.world_size)):
            if len(round_) == self.world_size or (not self.even and len(round_) > self.rank):
                yield round_[self.rank]


class Evened(Batches):
    """Batches for as long as every process has one.

    Args:
        loader: batches of this process.
        device: of the processes' group.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device) -> None:
        super().__init__(loader)
        self._vote = Vote(device)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if self._any_ends(False):
                return
            yield batch
        self._any_ends(True)

    def _any_ends(self, ends: bool) -> bool:
        self._vote.ask(ends)
        return bool(self._vote.answer())


def check_same_length(num_batches: float, device: torch.device) -> None:
    """Refuse an epoch in which processes would wait for each other for ever.

    Args:
        num_batches: of this process; infinity if nobody knows.
        device: of the processes' group.

    Raises:
        ValueError: in all processes, if they have not as many.
    """
    vote = Vote(device)
    vote.ask(num_batches)
    most = vote.answer()
    vote.ask(-num_batches)
    least = -vote.answer()
    if least != most:
        raise ValueError(
            f"train_loader gives {num_batches:g} batches to this process, {least:g} to {most:g} to "
            "all; expected as many to each: give every process the same batches, they are shared "
            "out"
        )


def _rebuilt(loader: DataLoader[Any], **batching: Any) -> DataLoader[Any]:
    return DataLoader(
        loader.dataset,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        **batching,
    )
