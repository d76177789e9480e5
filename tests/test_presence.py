import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from manystream.presence import Presence, Views, gray_rank, mask_from_blanked
from tests.builders import mask_of, presences


def sorted_samples(presence: Presence) -> list[int]:
    """Caller's number of each sorted sample."""
    return list(range(presence.num_samples)) if presence.order is None else presence.order.tolist()


def bits(row: Tensor) -> int:
    return sum(1 << m for m, has in enumerate(row.tolist()) if has)


def subsets_of(pattern: int) -> set[int]:
    return {s for s in range(1, pattern + 1) if s & ~pattern == 0}


def seen(views: Views) -> list[tuple[int, int]]:
    """The caller's sample and the subset of each view."""
    subset = [g.subset for g in views.groups for _ in range(g.views.start, g.views.stop)]
    return list(zip(views.sample.tolist(), subset, strict=True))


def entering(views: Views, stream: int) -> dict[int, int]:
    """The caller's sample that the runs of a stream bring to each of their views."""
    samples = views.presence.samples(stream).tolist()
    found = {}
    for rows, into in views.runs[stream]:
        assert rows.stop - rows.start == into.stop - into.start > 0
        for row, view in zip(range(*rows.indices(99)), range(*into.indices(999)), strict=True):
            assert view not in found, "a stream enters a view once"
            found[view] = samples[row]
    return found


def test_neighbours_in_gray_code_differ_in_one_stream() -> None:
    codes = sorted(range(16), key=gray_rank)
    assert sorted(map(gray_rank, range(16))) == list(range(16))
    assert all((a ^ b).bit_count() == 1 for a, b in itertools.pairwise(codes))


@given(presences())
def test_classes_samples_and_order_say_the_same(words: str) -> None:
    mask = mask_of(words)
    presence = Presence.from_mask(mask)
    samples = sorted_samples(presence)
    assert sorted(samples) == list(range(len(mask)))
    assert [bits(mask[b]) for b in samples] == [
        pattern for pattern, run in presence.classes for _ in range(run.start, run.stop)
    ]
    assert len({pattern for pattern, _ in presence.classes}) == len(presence.classes)
    for m in range(mask.shape[1]):
        assert presence.samples(m).tolist() == [b for b in samples if mask[b, m]]
        assert presence.num_rows(m) == int(mask[:, m].sum())
    assert torch.equal(presence.mask, mask)
    assert (presence.num_samples, presence.num_streams) == tuple(mask.shape)


@given(presences())
def test_full_views_are_the_sorted_samples(words: str) -> None:
    mask = mask_of(words)
    views = Views.full_only(Presence.from_mask(mask))
    assert views.num_views == len(mask)
    assert seen(views) == [(b, bits(mask[b])) for b in sorted_samples(views.presence)]


@given(presences(max_samples=5))
def test_all_subsets_hold_every_subset_of_what_a_sample_has_once(words: str) -> None:
    mask = mask_of(words)
    views = Views.with_subsets(Presence.from_mask(mask))
    expected = {(b, s) for b in range(len(mask)) for s in subsets_of(bits(mask[b]))}
    assert len(seen(views)) == len(expected)
    assert set(seen(views)) == expected


@pytest.mark.parametrize("build", [Views.full_only, Views.with_subsets])
@given(words=presences(max_samples=5))
def test_runs_bring_each_view_the_rows_of_its_sample(build, words: str) -> None:
    mask = mask_of(words)
    views = build(Presence.from_mask(mask))
    position = 0
    for group in views.groups:
        assert group.views.start == position < group.views.stop
        position = group.views.stop
    assert position == views.num_views
    for m in range(mask.shape[1]):
        found = entering(views, m)
        assert found == {v: b for v, (b, subset) in enumerate(seen(views)) if subset >> m & 1}
        first, count = [], presence_rows(views, m)
        for rows, _ in views.runs[m]:
            if len(first) < count:
                first += range(rows.start, rows.stop)
        assert sorted(first) == list(range(count)), "the first runs hold each row once"


def presence_rows(views: Views, stream: int) -> int:
    return views.presence.num_rows(stream)


@pytest.mark.parametrize("build", [Views.full_only, Views.with_subsets])
@given(words=presences(max_samples=5))
def test_restore_picks_the_full_views_in_the_callers_order(build, words: str) -> None:
    mask = mask_of(words)
    views = build(Presence.from_mask(mask))
    told = torch.tensor([(b, s) for b, s in seen(views)])
    assert views.restore(told).tolist() == [[b, bits(row)] for b, row in enumerate(mask)]


@pytest.mark.parametrize("build", [Views.full_only, Views.with_subsets])
def test_two_complete_streams_enter_in_one_run_a_group(build) -> None:
    views = build(Presence.all_present(4, 2))
    having = {m: sum(g.subset >> m & 1 for g in views.groups) for m in (0, 1)}
    assert {m: len(runs) for m, runs in enumerate(views.runs)} == having


@given(presences())
def test_a_sorted_batch_is_left_as_it_is(words: str) -> None:
    mask = mask_of(words)
    again = Presence.from_mask(mask[sorted_samples(Presence.from_mask(mask))])
    assert again.order is None
    assert Views.full_only(again).full is None


def test_equal_samples_stay_in_the_callers_order() -> None:
    order = sorted_samples(Presence.from_mask(mask_of("01 11 01 11 10")))
    assert order.index(0) < order.index(2)
    assert order.index(1) < order.index(3)


def test_a_stream_without_rows_has_no_run() -> None:
    presence = Presence.from_mask(mask_of("10 10"))
    assert Views.full_only(presence).runs == (((slice(0, 2), slice(0, 2)),), ())
    assert presence.samples(1).tolist() == []


def test_a_batch_without_samples() -> None:
    views = Views.full_only(Presence.from_mask(torch.zeros(0, 2, dtype=torch.bool)))
    assert (views.num_views, views.groups, views.runs) == (0, (), ((), ()))


def test_from_blanked_is_the_opposite_of_present() -> None:
    lost = torch.tensor([False, True, False])
    presence = Presence.from_blanked({1: lost}, num_samples=3, num_streams=3)
    assert torch.equal(presence.mask, mask_of("111 101 111"))
    assert torch.equal(mask_from_blanked({}, 2, 2), mask_of("11 11"))


def test_the_mask_stays_on_the_host() -> None:
    views = Views.full_only(Presence.from_mask(mask_of("110 101 011"))).to("meta")
    assert views.full is not None
    assert {t.device.type for t in (views.full, views.sample, views.weight)} == {"meta"}
    assert views.presence.mask.device.type == "cpu"


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 2), r"present is torch.float32 of shape \(2, 2\); expected bool"),
        (torch.ones(2, 2, dtype=torch.int64), r"present is torch.int64 .*expected bool"),
        (torch.ones(2, dtype=torch.bool), r"shape \(2,\); expected bool of shape \(B, M\)"),
        (torch.ones(2, 0, dtype=torch.bool), r"shape \(2, 0\); expected bool of shape \(B, M\)"),
        (mask_of("10 00 11 00"), r"samples without any stream: 1, 3 \(2 of 4\)"),
        (mask_of("00 " * 9), r"any stream: 0, 1, 2, 3, 4, 5, 6, 7, … \(9 of 9\)"),
    ],
)
def test_bad_masks(mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Presence.from_mask(mask)


@pytest.mark.parametrize(
    ("blanked", "message"),
    [
        ({2: torch.ones(3, dtype=torch.bool)}, "names stream 2; streams are 0 to 1"),
        ({-1: torch.ones(3, dtype=torch.bool)}, "names stream -1; streams are 0 to 1"),
        ({1: torch.ones(3)}, r"blanked_mask\[1\] is torch.float32 of shape \(3,\); expected bool"),
        ({0: torch.ones(2, dtype=torch.bool)}, r"of shape \(2,\); expected bool of shape \(3,\)"),
        (
            {0: torch.tensor([True, False, True]), 1: torch.tensor([True, False, False])},
            r"samples without any stream: 0 \(1 of 3\)",
        ),
    ],
)
def test_bad_blanked_masks(blanked: dict[int, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Presence.from_blanked(blanked, num_samples=3, num_streams=2)


@given(presences(min_streams=2, max_samples=8), st.integers(2, 7))
def test_few_subsets_go_round_evenly(words: str, per_sample: int) -> None:
    """Every sample has its full view and others, which are as frequent as each other."""
    mask = mask_of(words)
    views = Views.with_subsets(Presence.from_mask(mask), per_sample)
    told = seen(views)
    assert len(set(told)) == len(told)
    for pattern in {bits(row) for row in mask}:
        samples = {b for b, row in enumerate(mask) if bits(row) == pattern}
        smaller = subsets_of(pattern) - {pattern}
        each = min(per_sample - 1, len(smaller))
        for b in samples:
            mine = {s for a, s in told if a == b}
            assert pattern in mine
            assert len(mine) == each + 1
            assert mine <= smaller | {pattern}
        counts = [sum(a in samples and s == subset for a, s in told) for subset in smaller]
        assert max(counts, default=0) - min(counts, default=0) <= 2
    for m in range(mask.shape[1]):
        found = entering(views, m)
        assert found == {v: b for v, (b, subset) in enumerate(told) if subset >> m & 1}


def test_a_cycle_of_subsets_is_dealt_once() -> None:
    """Six samples, six smaller subsets of three streams: each sample begins at another."""
    views = Views.with_subsets(Presence.all_present(6, 3), per_sample=3)
    counts = Counter(subset for _, subset in seen(views))
    assert counts == {7: 6, **dict.fromkeys([1, 2, 3, 4, 5, 6], 2)}


@given(presences(max_samples=5), st.one_of(st.none(), st.integers(2, 5)))
def test_the_weights_of_a_sample_are_shared_by_its_views(words: str, per_sample) -> None:
    mask = mask_of(words)
    weights = {1: 3.0, 3: 0.5}
    views = Views.with_subsets(Presence.from_mask(mask), per_sample, weights)
    for b in range(len(mask)):
        mine = {
            s: w for (a, s), w in zip(seen(views), views.weight.tolist(), strict=True) if a == b
        }
        total = sum(weights.get(s, 1.0) for s in mine)
        for subset, weight in mine.items():
            assert weight == pytest.approx(weights.get(subset, 1.0) / total / len(mask))


def test_a_batch_of_no_samples_has_no_views() -> None:
    presence = Presence.from_mask(torch.ones(0, 2, dtype=torch.bool))
    for views in (Views.full_only(presence), Views.with_subsets(presence)):
        assert (views.num_views, views.groups, len(views.weight)) == (0, (), 0)
