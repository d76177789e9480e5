"""Which sample has which stream, and with which sets of streams the integrated pathway sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Presence:
    """Who has which stream, known on the host, and the sorted order that follows from it.

    Samples are sorted by their pattern, the set of streams that they have, so that each stream's
    rows stand in few runs: patterns follow each other as in a Gray code, where neighbours differ in
    one stream. With two streams (only one | both | only the other) every stream is one run.

    Build one with :meth:`from_mask`, :meth:`from_blanked` or :meth:`all_present`.

    Attributes:
        mask: present streams in the caller's order, shape (B, M), bool, on the CPU.
        order: caller's number of each sorted sample, shape (B,), int64, on the CPU; None where
            the caller's order is already sorted.
        classes: the patterns that occur, as the bits of a number, and the run of sorted samples
            that have each; the runs follow each other from 0 to B.

    Example:
        >>> presence = Presence.from_mask(torch.tensor([[True, True], [False, True], [True, True]]))
        >>> presence.order.tolist(), presence.classes
        ([0, 2, 1], ((3, slice(0, 2, None)), (2, slice(2, 3, None))))
    """

    mask: Tensor
    order: Tensor | None
    classes: tuple[tuple[int, slice], ...]

    @classmethod
    def from_mask(cls, mask: Tensor) -> Presence:
        """Sort a batch by the streams its samples have.

        Args:
            mask: True where sample b has stream m, shape (B, M), bool. A mask that lies on a
                device is read here, which waits for that device; keep masks on the CPU.

        Raises:
            ValueError: if the mask has another shape or dtype, or a sample has no stream.
        """
        mask = _checked_mask(mask)
        bits = [1 << m for m in range(mask.shape[1])]
        patterns = (mask.long() @ torch.tensor(bits)).tolist()
        order = sorted(range(len(patterns)), key=lambda b: gray_rank(patterns[b]))
        classes, start = [], 0
        for pattern, samples in groupby(patterns[b] for b in order):
            stop = start + len(list(samples))
            classes.append((pattern, slice(start, stop)))
            start = stop
        is_sorted = order == list(range(len(order)))
        return cls(mask, None if is_sorted else torch.tensor(order), tuple(classes))

    @classmethod
    def from_blanked(
        cls, blanked: Mapping[int, Tensor], num_samples: int, num_streams: int
    ) -> Presence:
        """Everything is present but what ``blanked`` names.

        Args:
            blanked: for some streams, True where the sample lacks it, shape (B,), bool.
            num_samples: batch size B.
            num_streams: number of streams M.

        Raises:
            ValueError: if a stream does not exist, a mask has another shape or dtype, or a sample
                is left with no stream.
        """
        return cls.from_mask(mask_from_blanked(blanked, num_samples, num_streams))

    @classmethod
    def all_present(cls, num_samples: int, num_streams: int) -> Presence:
        """Every sample has every stream."""
        return cls.from_mask(torch.ones(num_samples, num_streams, dtype=torch.bool))

    @property
    def num_samples(self) -> int:
        """Batch size B."""
        return self.mask.shape[0]

    @property
    def num_streams(self) -> int:
        """Number of streams M."""
        return self.mask.shape[1]

    def samples(self, stream: int) -> Tensor:
        """Caller's numbers of a stream's rows, in their sorted order, shape (B_m,), int64, CPU."""
        present = self.mask[:, stream]
        if self.order is None:
            return present.nonzero().flatten()
        return self.order[present[self.order]]

    def num_rows(self, stream: int) -> int:
        """Count the samples that have a stream, B_m."""
        return sum(_length(run) for pattern, run in self.classes if pattern >> stream & 1)


class Run(NamedTuple):
    """Neighbouring rows of a stream, and the neighbouring views that they enter, in one order."""

    rows: slice
    views: slice


class Group(NamedTuple):
    """The views of one subset of the streams, written as the bits of a number."""

    subset: int
    views: slice


@dataclass(frozen=True, eq=False)
class Views:
    """With which subset of its streams the integrated pathway sees each sample.

    A view is a row of the integrated pathway. A sample always has its full view, with all streams
    that it has, and may have more, each with a smaller subset. Views stand in groups of one subset,
    and a stream's rows enter them run by run, so nothing here needs an index but the way back to
    the caller's order.

    Build them with :meth:`full_only` or :meth:`all_subsets`.

    Attributes:
        presence: who has which stream.
        groups: the groups from the first view to the last, none of them empty.
        runs: for each stream, where its rows enter. Those of full views come first: together they
            hold each row once.
        sample: sorted sample of each view, shape (V,), int64, on the CPU.
        full: full view of each of the CALLER's samples, shape (B,), int64, on the device of the
            batch; None where that is its own number.
    """

    presence: Presence
    groups: tuple[Group, ...]
    runs: tuple[tuple[Run, ...], ...]
    sample: Tensor
    full: Tensor | None

    @classmethod
    def full_only(cls, presence: Presence) -> Views:
        """One view of each sample, with all that it has; views stand as sorted samples do."""
        return cls._of(presence, {pattern: [samples] for pattern, samples in presence.classes})

    @classmethod
    def all_subsets(cls, presence: Presence) -> Views:
        """A view of each sample with every non-empty subset of the streams that it has."""
        subsets = sorted(range(1, 1 << presence.num_streams), key=gray_rank)
        having = {
            subset: [run for pattern, run in presence.classes if subset & ~pattern == 0]
            for subset in subsets
        }
        return cls._of(presence, {subset: runs for subset, runs in having.items() if runs})

    @classmethod
    def _of(cls, presence: Presence, members: Mapping[int, Sequence[slice]]) -> Views:
        """Line the views up: by subset, and for each subset runs of sorted samples, ascending.

        No run of samples goes beyond one of the presence's classes.
        """
        groups, placed, start = [], list[tuple[int, slice, slice]](), 0
        for subset, samples in members.items():
            first = start
            for run in samples:
                placed.append((subset, run, slice(start, start + _length(run))))
                start += _length(run)
            groups.append(Group(subset, slice(first, start)))
        sample = torch.tensor(
            [s for _, run, _ in placed for s in range(run.start, run.stop)], dtype=torch.int64
        )
        runs = tuple(_runs_of(m, presence, placed) for m in range(presence.num_streams))
        return cls(presence, tuple(groups), runs, sample, _full_views(presence, placed))

    @property
    def num_views(self) -> int:
        """Number of views V."""
        return len(self.sample)

    def entering(self, stream: int) -> tuple[Run, ...]:
        """Give the runs of a stream; one without rows has an empty run, so zero gradients."""
        return self.runs[stream] or (Run(slice(0, 0), slice(0, 0)),)

    def restore(self, views: Tensor) -> Tensor:
        """Pick the full views, in the caller's order.

        Args:
            views: shape (V, ...).

        Returns:
            Shape (B, ...).
        """
        return views if self.full is None else views.index_select(0, self.full)

    def to(self, device: torch.device | str) -> Views:
        """Bring what is indexed with to a device, without waiting for it."""
        return self if self.full is None else replace(self, full=upload(self.full, device))


def gray_rank(pattern: int) -> int:
    """Return the place of a pattern in the reflected Gray code, whose neighbours differ in one bit.

    Source: Gray, "Pulse code communication", US patent 2,632,058, 1953.
    """
    rank = pattern
    while pattern := pattern >> 1:
        rank ^= pattern
    return rank


def _runs_of(
    stream: int, presence: Presence, placed: Iterable[tuple[int, slice, slice]]
) -> tuple[Run, ...]:
    first_row, row = {}, 0
    for pattern, samples in presence.classes:
        first_row[pattern] = row
        row += _length(samples) * (pattern >> stream & 1)
    full, smaller = list[Run](), list[Run]()
    for subset, samples, views in placed:
        if not subset >> stream & 1:
            continue
        pattern, run = next(
            (p, r) for p, r in presence.classes if r.start <= samples.start < r.stop
        )
        start = first_row[pattern] + samples.start - run.start
        entering = Run(slice(start, start + _length(samples)), views)
        _append(full if subset == pattern else smaller, entering)
    return (*full, *smaller)


def _append(runs: list[Run], run: Run) -> None:
    """Add a run; one that continues the last in its rows and views becomes part of it."""
    if runs and runs[-1].rows.stop == run.rows.start and runs[-1].views.stop == run.views.start:
        last = runs.pop()
        run = Run(slice(last.rows.start, run.rows.stop), slice(last.views.start, run.views.stop))
    runs.append(run)


def _full_views(presence: Presence, placed: Iterable[tuple[int, slice, slice]]) -> Tensor | None:
    patterns = dict(presence.classes)
    full = torch.empty(presence.num_samples, dtype=torch.int64)
    for subset, samples, views in placed:
        own = patterns.get(subset)
        if own is not None and own.start <= samples.start < own.stop:
            full[samples] = torch.arange(views.start, views.stop)
    if presence.order is not None:
        full = torch.empty_like(full).index_copy_(0, presence.order, full)
    return None if torch.equal(full, torch.arange(len(full))) else full


def _length(run: slice) -> int:
    return int(run.stop - run.start)


def upload(index: Tensor, device: torch.device | str) -> Tensor:
    """Copy a small host tensor to a device; to CUDA through pinned memory, so nobody waits."""
    if torch.device(device).type == "cuda" and not index.is_cuda:
        index = index.pin_memory()
    return index.to(device, non_blocking=True)


def mask_from_blanked(blanked: Mapping[int, Tensor], num_samples: int, num_streams: int) -> Tensor:
    """Turn ``{stream: lost}`` into a presence mask.

    Args:
        blanked: for some streams, True where the sample lacks it, shape (B,), bool.
        num_samples: batch size B.
        num_streams: number of streams M.

    Returns:
        Shape (B, M), bool, on the CPU.

    Raises:
        ValueError: if a stream does not exist or a mask has another shape or dtype.
    """
    mask = torch.ones(num_samples, num_streams, dtype=torch.bool)
    for stream, lost in blanked.items():
        if stream not in range(num_streams):
            raise ValueError(
                f"blanked_mask names stream {stream}; streams are 0 to {num_streams - 1}"
            )
        lost = torch.as_tensor(lost)
        if lost.dtype != torch.bool or lost.shape != (num_samples,):
            raise ValueError(
                f"blanked_mask[{stream}] is {lost.dtype} of shape {tuple(lost.shape)}; "
                f"expected bool of shape ({num_samples},), True where the sample lacks the stream"
            )
        mask[:, stream] = ~lost.cpu()
    return mask


def _checked_mask(mask: Tensor) -> Tensor:
    mask = torch.as_tensor(mask)
    if mask.dtype != torch.bool or mask.dim() != 2 or mask.shape[1] == 0:
        raise ValueError(
            f"present is {mask.dtype} of shape {tuple(mask.shape)}; "
            "expected bool of shape (B, M), True where sample b has stream m"
        )
    mask = mask.cpu()
    empty = (~mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        shown = ", ".join(map(str, empty[:8])) + (", …" if len(empty) > 8 else "")
        raise ValueError(
            f"samples without any stream: {shown} ({len(empty)} of {len(mask)}); "
            "every sample needs at least one stream, leave these out of the batch"
        )
    return mask
