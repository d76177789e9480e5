from itertools import combinations_with_replacement, permutations, product

import pytest
import torch
from hypothesis import given
from torch import Tensor

from manystream.presence import Presence, mask_from_blanked
from tests.builders import mask_of, presences


def is_run(present: list[bool]) -> bool:
    """Whether the ones stand together."""
    return "0" not in "".join("1" if p else "0" for p in present).strip("0")


def most_runs(mask: Tensor) -> int:
    """By trying every order of the samples: how many streams can be runs at once."""
    orders = permutations(mask.tolist())
    return max(sum(map(is_run, zip(*order, strict=True))) for order in orders)


def number_of_slices(mask: Tensor) -> int:
    return sum(isinstance(rows, slice) for rows in Presence.from_mask(mask).rows)


def all_words(num_streams: int) -> list[str]:
    return [f"{n:0{num_streams}b}" for n in range(1, 2**num_streams)]


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4, 5])
def test_up_to_two_streams_are_always_runs(num_samples: int) -> None:
    assert number_of_slices(mask_of("1 " * num_samples)) == 1
    for words in product(all_words(2), repeat=num_samples):
        assert number_of_slices(mask_of(" ".join(words))) == 2


def test_three_streams_are_runs_wherever_an_order_exists() -> None:
    fewer = 0
    for words in combinations_with_replacement(all_words(3), 4):
        mask = mask_of(" ".join(words))
        assert number_of_slices(mask) == most_runs(mask), words
        fewer += number_of_slices(mask) < 3
    assert fewer, "among these batches are some without such an order"


def test_four_streams_are_all_runs_wherever_an_order_exists() -> None:
    outcomes = set()
    for words in combinations_with_replacement(all_words(4), 3):
        mask = mask_of(" ".join(words))
        possible = most_runs(mask) == 4
        assert (number_of_slices(mask) == 4) is possible, words
        outcomes.add(possible)
    assert outcomes == {True, False}


@given(presences())
def test_rows_samples_and_order_say_the_same(words: str) -> None:
    mask = mask_of(words)
    presence = Presence.from_mask(mask)
    full = torch.arange(len(mask))
    in_order = full if presence.order is None else full[presence.order]
    assert sorted(in_order.tolist()) == full.tolist()
    for m in range(mask.shape[1]):
        samples = presence.samples(m)
        assert sorted(samples.tolist()) == mask[:, m].nonzero().flatten().tolist()
        assert torch.equal(in_order[presence.rows[m]], samples)
    assert torch.equal(presence.mask, mask)
    assert (presence.num_samples, presence.num_streams) == tuple(mask.shape)


@given(presences())
def test_restore_undoes_the_order(words: str) -> None:
    presence = Presence.from_mask(mask_of(words))
    full = torch.arange(2 * presence.num_samples).view(-1, 2)
    in_order = full if presence.order is None else full[presence.order]
    assert torch.equal(presence.restore(in_order), full)


@given(presences())
def test_a_sorted_batch_is_left_as_it_is(words: str) -> None:
    mask = mask_of(words)
    order = Presence.from_mask(mask).order
    again = Presence.from_mask(mask if order is None else mask[order])
    assert again.order is None
    assert again.restore_index is None


def test_equal_samples_stay_in_the_callers_order() -> None:
    presence = Presence.from_mask(mask_of("01 11 01 11 10"))
    assert presence.order is not None
    order = presence.order.tolist()
    assert order.index(0) < order.index(2)
    assert order.index(1) < order.index(3)


@pytest.mark.parametrize(
    "presence", [Presence.all_present(3, 2), Presence.from_mask(torch.ones(3, 2, dtype=torch.bool))]
)
def test_all_present(presence: Presence) -> None:
    assert presence.mask.all()
    assert presence.mask.shape == (3, 2)
    assert presence.order is None
    assert presence.restore_index is None
    assert presence.rows == (slice(0, 3), slice(0, 3))


def test_a_stream_without_rows_is_an_empty_slice() -> None:
    presence = Presence.from_mask(mask_of("10 10"))
    assert torch.arange(2)[presence.rows[1]].tolist() == []
    assert presence.samples(1).tolist() == []


def test_from_blanked_is_the_opposite_of_present() -> None:
    lost = torch.tensor([False, True, False])
    presence = Presence.from_blanked({1: lost}, num_samples=3, num_streams=3)
    assert torch.equal(presence.mask, mask_of("111 101 111"))
    assert torch.equal(mask_from_blanked({}, 2, 2), mask_of("11 11"))


def test_only_the_indices_go_to_the_device() -> None:
    presence = Presence.from_mask(mask_of("110 101 011"))
    assert any(isinstance(rows, Tensor) for rows in presence.rows)
    moved = presence.to("meta")
    assert moved.mask.device.type == "cpu"
    assert moved.order is not None
    assert moved.order.device.type == "cpu"
    assert moved.restore_index is not None
    assert moved.restore_index.device.type == "meta"
    for before, after in zip(presence.rows, moved.rows, strict=True):
        assert after == before if isinstance(before, slice) else after.device.type == "meta"


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
