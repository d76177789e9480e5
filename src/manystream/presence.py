"""Which sample has which stream, and with which sets of streams the integrated pathway sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        """Take everything as present but what ``blanked`` names.

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
        """Let every sample have every stream."""
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
        """Return the caller's numbers of a stream's rows as they are sorted, shape (B_m,), CPU."""
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

    Build them with :meth:`full_only` or :meth:`with_subsets`.

    Attributes:
        presence: who has which stream.
        groups: the groups from the first view to the last, none of them empty.
        runs: for each stream, where its rows enter. Those of full views come first: together they
            hold each row once.
        num_views: number of views V.
        full: full view of each of the CALLER's samples, shape (B,), int64, on the device of the
            batch; None where that is its own number.
        sample: the CALLER's sample of each view, shape (V,), int64, on the device of the batch.
        weight: what each view's loss counts, shape (V,), float32, on the device of the batch; those
            of one sample are 1/B together.
    """

    presence: Presence
    groups: tuple[Group, ...]
    runs: tuple[tuple[Run, ...], ...]
    num_views: int
    full: Tensor | None
    sample: Tensor
    weight: Tensor

    @classmethod
    def full_only(cls, presence: Presence) -> Views:
        """Take one view of each sample, with all that it has; views stand as sorted samples do."""
        placed = [_Placed(pattern, samples, samples) for pattern, samples in presence.classes]
        count = presence.num_samples
        return cls._of(
            presence, placed, torch.arange(count), torch.full((count,), 1 / max(count, 1))
        )

    @classmethod
    def with_subsets(
        cls,
        presence: Presence,
        per_sample: int | None = None,
        weights: Mapping[int, float] | None = None,
    ) -> Views:
        """See each sample with its full view and with smaller subsets of the streams that it has.

        Args:
            presence: who has which stream.
            per_sample: most views of a sample, its full view among them; None takes every subset.
                The smaller subsets go round among the samples of a pattern, so each occurs as often
                as another, and how often depends on the number of these samples alone. Which sample
                gets which depends on its place in the batch, which a loader should shuffle.
            weights: how much a subset counts beside the others of a sample, by the bits of its
                streams; 1 where nothing is said.
        """
        members: dict[int, list[slice]] = {
            subset: [] for subset in sorted(range(1, 1 << presence.num_streams), key=gray_rank)
        }
        for pattern, samples in presence.classes:
            smaller = [s for s in members if s & ~pattern == 0 and s != pattern]
            members[pattern].append(samples)
            most = len(smaller) if per_sample is None else per_sample - 1
            for subset, run in _dealt(smaller, samples, most):
                members[subset].append(run)
        placed, start = [], 0
        for subset, runs in members.items():
            for run in sorted(runs, key=lambda r: r.start):
                placed.append(_Placed(subset, run, slice(start, start + _length(run))))
                start += _length(run)
        nothing, weights = torch.empty(0), weights or {}
        sample = torch.cat(
            [nothing.long(), *(torch.arange(p.samples.start, p.samples.stop) for p in placed)]
        )
        size = torch.cat(
            [
                nothing,
                *(torch.full((_length(p.views),), weights.get(p.subset, 1.0)) for p in placed),
            ]
        )
        of_sample = size.new_zeros(presence.num_samples).index_add_(0, sample, size)
        weight = size / (of_sample[sample] * presence.num_samples)
        return cls._of(presence, placed, sample, weight)

    @classmethod
    def _of(
        cls, presence: Presence, placed: Sequence[_Placed], sample: Tensor, weight: Tensor
    ) -> Views:
        """Make views of the sorted sample of each."""
        groups = []
        for subset, of_subset in groupby(placed, key=lambda p: p.subset):
            views = [p.views for p in of_subset]
            groups.append(Group(subset, slice(views[0].start, views[-1].stop)))
        return cls(
            presence,
            tuple(groups),
            tuple(_runs_of(m, presence, placed) for m in range(presence.num_streams)),
            len(sample),
            _full_views(presence, placed),
            sample if presence.order is None else presence.order[sample],
            weight,
        )

    @property
    def are_full(self) -> bool:
        """Whether each sample has its full view only."""
        return self.num_views == self.presence.num_samples

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
        """Bring the tensors to a device, without waiting for it."""
        return replace(
            self,
            full=None if self.full is None else upload(self.full, device),
            sample=upload(self.sample, device),
            weight=upload(self.weight, device),
        )


def gray_rank(pattern: int) -> int:
    """Return the place of a pattern in the reflected Gray code, whose neighbours differ in one bit.

    Source: Gray, "Pulse code communication", US patent 2,632,058, 1953.
    """
    rank = pattern
    while pattern := pattern >> 1:
        rank ^= pattern
    return rank


class _Placed(NamedTuple):
    """Neighbouring sorted samples of one pattern, and their views with a subset."""

    subset: int
    samples: slice
    views: slice


def _dealt(subsets: Sequence[int], samples: slice, most: int) -> Iterator[tuple[int, slice]]:
    """Deal subsets to samples, ``most`` to each: neighbours in a cycle, which goes round once.

    Yields:
        Runs of samples that get a subset; one subset has at most two.
    """
    if most >= len(subsets):
        yield from ((subset, samples) for subset in subsets)
        return
    count, cycle = _length(samples), len(subsets)
    # The p-th sample begins at floor(p L / n) of the cycle, so these samples begin at its j-th.
    begins = [samples.start + -(-j * count // cycle) for j in range(cycle + 1)]
    for j, subset in enumerate(subsets):
        first, last = j - most + 1, j + 1  # who begins here has the subset
        for a, b in (
            ((max(first, 0), last), (first + cycle, cycle)) if first < 0 else [(first, last)]
        ):
            if begins[a] < begins[b]:
                yield subset, slice(begins[a], begins[b])


def _runs_of(stream: int, presence: Presence, placed: Iterable[_Placed]) -> tuple[Run, ...]:
    first_row, row = [], 0
    for pattern, samples in presence.classes:
        first_row.append((samples, row))
        row += _length(samples) * (pattern >> stream & 1)
    patterns = dict(presence.classes)
    full, smaller = list[Run](), list[Run]()
    for subset, samples, views in placed:
        if not subset >> stream & 1:
            continue
        own, row = next((c, r) for c, r in first_row if samples.start < c.stop)
        start = row + samples.start - own.start
        entering = Run(slice(start, start + _length(samples)), views)
        _append(full if patterns.get(subset) == own else smaller, entering)
    return (*full, *smaller)


def _append(runs: list[Run], run: Run) -> None:
    """Add a run; one that continues the last in its rows and views becomes part of it."""
    if runs and runs[-1].rows.stop == run.rows.start and runs[-1].views.stop == run.views.start:
        last = runs.pop()
        run = Run(slice(last.rows.start, run.rows.stop), slice(last.views.start, run.views.stop))
    runs.append(run)


def _full_views(presence: Presence, placed: Iterable[_Placed]) -> Tensor | None:
    patterns = dict(presence.classes)
    full = torch.empty(presence.num_samples, dtype=torch.int64)
    for subset, samples, views in placed:
        if patterns.get(subset) == samples:
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
