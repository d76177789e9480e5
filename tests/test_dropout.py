import math
from collections import Counter
from itertools import combinations

import pytest
import torch
from torch import Tensor

from manystream.dropout import ModalityDropout, scheduled_probability
from tests.builders import mask_of

BATCH = 20_000
SIGMAS = 4.5


def assert_probability(hits: Tensor, probability: float) -> None:
    """The share of independent hits, within what chance allows."""
    sigma = math.sqrt(probability * (1 - probability) / len(hits))
    assert abs(hits.double().mean().item() - probability) <= SIGMAS * sigma


def lost_of(dropout: ModalityDropout, present: Tensor) -> Tensor:
    kept = dropout.draw(present)
    assert kept.dtype == torch.bool
    assert not (kept & ~present).any(), "a stream that was not there"
    assert kept.any(dim=1).all(), "a sample without any stream"
    return present & ~kept


@pytest.mark.parametrize(
    ("schedule", "start", "ramp", "expected"),
    [
        ("ramp_up", 0, 0, [0.4] * 6),
        ("ramp_up", 2, 0, [0, 0, 0.4, 0.4, 0.4, 0.4]),
        ("ramp_up", 2, -3, [0, 0, 0.4, 0.4, 0.4, 0.4]),
        ("ramp_up", 0, 4, [0.1, 0.2, 0.3, 0.4, 0.4, 0.4]),
        ("ramp_up", 1, 2, [0, 0.2, 0.4, 0.4, 0.4, 0.4]),
        ("ramp_up", 1, 1, [0, 0.4, 0.4, 0.4, 0.4, 0.4]),
        ("ramp_down", 0, 0, [0.4] * 6),
        ("ramp_down", 2, 0, [1, 1, 0.4, 0.4, 0.4, 0.4]),
        ("ramp_down", 0, 4, [0.85, 0.7, 0.55, 0.4, 0.4, 0.4]),
        ("ramp_down", 1, 3, [1, 0.8, 0.6, 0.4, 0.4, 0.4]),
    ],
)
def test_schedules(schedule: str, start: int, ramp: int, expected: list[float]) -> None:
    values = [scheduled_probability(e, 0.4, schedule, start, ramp) for e in range(6)]
    assert values == pytest.approx(expected, abs=1e-15)
    dropout = ModalityDropout(2, 0.4, schedule=schedule, start=start, ramp=ramp)
    assert [dropout.probability(e) for e in range(6)] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("rate", [-0.1, 1.5, math.nan])
def test_the_schedule_wants_a_probability(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate is .*expected a probability in \[0, 1\]"):
        scheduled_probability(0, rate)


def test_an_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'linear'; expected one of ramp_up, ram"):
        scheduled_probability(0, 0.5, "linear")
    with pytest.raises(ValueError, match="unknown schedule 'linear'"):
        ModalityDropout(2, 0.5, schedule="linear")


@pytest.mark.parametrize(
    ("num_streams", "arguments", "message"),
    [
        (1, {}, "needs at least two streams; the model has 1"),
        (2, {"rate": 1.2}, r"rate is 1.2; expected a probability in \[0, 1\]"),
        (2, {"rate": -0.2}, "rate is -0.2; expected a probability"),
        (2, {"rate": math.nan}, "rate is nan; expected a probability"),
        (2, {"rate": [0.5, 0.6]}, "together are at most 1"),
        (2, {"rate": [0.5, -0.1]}, "expected a probability"),
        (3, {"rate": [0.1, 0.1]}, r"2 modality dropout rates for 3 streams: \(0.1, 0.1\)"),
        (3, {"max_blanked": 0}, "max_blanked is 0; expected 1 to 2"),
        (3, {"max_blanked": 3}, "max_blanked is 3; expected 1 to 2, at least one stream stays"),
    ],
)
def test_bad_arguments(num_streams: int, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModalityDropout(num_streams, **arguments)


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("num_streams", [2, 3])
def test_one_rate_blanks_one_stream_chosen_uniformly(num_streams: int, stratified: bool) -> None:
    dropout = ModalityDropout(num_streams, 0.3, stratified=stratified, seed=1)
    lost = lost_of(dropout, torch.ones(BATCH, num_streams, dtype=torch.bool))
    assert lost.sum(dim=1).max() == 1
    assert_probability(lost.any(dim=1), 0.3)
    for m in range(num_streams):
        assert_probability(lost[:, m], 0.3 / num_streams)


@pytest.mark.parametrize("stratified", [False, True])
def test_a_rate_per_stream(stratified: bool) -> None:
    rates = (0.25, 0.0, 0.05)
    dropout = ModalityDropout(3, rates, stratified=stratified, seed=2)
    lost = lost_of(dropout, torch.ones(BATCH, 3, dtype=torch.bool))
    assert lost.sum(dim=1).max() == 1
    assert not lost[:, 1].any()
    assert_probability(lost[:, 0], 0.25)
    assert_probability(lost[:, 2], 0.05)


@pytest.mark.parametrize("stratified", [False, True])
def test_up_to_two_of_three_streams(stratified: bool) -> None:
    dropout = ModalityDropout(3, 0.6, max_blanked=2, stratified=stratified, seed=3)
    lost = lost_of(dropout, torch.ones(BATCH, 3, dtype=torch.bool))
    for count, probability in [(0, 0.4), (1, 0.3), (2, 0.3)]:
        assert_probability(lost.sum(dim=1) == count, probability)
    for m in range(3):
        # Alone in a third of the sets of one, with another in two thirds of the sets of two.
        assert_probability(lost[:, m], 0.3 / 3 + 0.3 * 2 / 3)


def test_the_epoch_decides_the_probability() -> None:
    dropout = ModalityDropout(2, 0.4, start=1, ramp=4, seed=4)
    present = torch.ones(BATCH, 2, dtype=torch.bool)
    assert not lost_of(dropout, present).any()
    for epoch, probability in [(1, 0.1), (3, 0.3), (9, 0.4)]:
        dropout.epoch = epoch
        assert_probability(lost_of(dropout, present).any(dim=1), probability)


def test_a_ramp_down_begins_with_every_sample() -> None:
    dropout = ModalityDropout(3, (0.3, 0.1, 0.0), schedule="ramp_down", start=1, ramp=2)
    lost = lost_of(dropout, torch.ones(BATCH, 3, dtype=torch.bool))
    assert (lost.sum(dim=1) == 1).all()
    assert_probability(lost[:, 0], 0.75)


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("max_blanked", [1, 2])
def test_missing_data_stays_missing_and_one_stream_stays(
    max_blanked: int, stratified: bool
) -> None:
    dropout = ModalityDropout(3, 1.0, max_blanked=max_blanked, stratified=stratified, seed=5)
    words = ["111", "110", "101", "011", "100", "010", "001"]
    present = mask_of(" ".join(words)).repeat(2_000, 1)
    before = present.clone()
    lost = lost_of(dropout, present)
    assert torch.equal(present, before), "the caller's mask is left alone"
    group = torch.arange(len(present)) % len(words)
    assert not lost[group >= 4].any()
    for g in (1, 2, 3):
        mine = lost[group == g]
        assert (mine.sum(dim=1) == 1).all()
        for m in present[g].nonzero().flatten().tolist():
            assert_probability(mine[:, m], 0.5)
    assert lost[group == 0].any(dim=1).all()
    assert lost[group == 0].sum(dim=1).max() == max_blanked


@pytest.mark.parametrize("num_samples", [1, 5, 10, 33])
def test_stratified_counts_are_the_expected_ones_rounded(num_samples: int) -> None:
    dropout = ModalityDropout(3, (0.3, 0.15, 0.05), stratified=True, seed=6)
    present = torch.ones(num_samples, 3, dtype=torch.bool)
    counts = torch.stack([lost_of(dropout, present).sum(dim=0) for _ in range(400)])
    for m, rate in enumerate((0.3, 0.15, 0.05)):
        expected = rate * num_samples
        assert set(counts[:, m].tolist()) == {math.floor(expected), math.ceil(expected)}
        # One count is floor or ceil, by chance: its variance is at most a quarter.
        assert abs(counts[:, m].double().mean() - expected) < SIGMAS * 0.5 / math.sqrt(400)


def test_stratified_sets_of_two_streams_have_rounded_counts_too() -> None:
    dropout = ModalityDropout(3, 0.6, max_blanked=2, stratified=True, seed=7)
    for _ in range(50):
        lost = lost_of(dropout, torch.ones(25, 3, dtype=torch.bool))
        sets = Counter(map(tuple, lost[lost.any(dim=1)].tolist()))
        assert len(sets) == 6
        assert set(sets.values()) <= {2, 3}


def test_stratified_positions_are_shuffled() -> None:
    dropout = ModalityDropout(2, 0.5, stratified=True, seed=8)
    draws = [lost_of(dropout, torch.ones(8, 2, dtype=torch.bool)) for _ in range(4000)]
    for sample in torch.stack(draws).any(dim=2).unbind(dim=1):
        assert_probability(sample, 0.5)


@pytest.mark.parametrize("stratified", [False, True])
def test_the_state_goes_on_where_it_was_taken(stratified: bool) -> None:
    present = torch.ones(50, 3, dtype=torch.bool)
    dropout = ModalityDropout(3, 0.5, stratified=stratified, ramp=10, seed=9)
    dropout.epoch = 7
    first = dropout.draw(present)
    state = dropout.state_dict()
    due = [dropout.draw(present) for _ in range(3)]
    resumed = ModalityDropout(3, 0.5, stratified=stratified, ramp=10, seed=1234)
    resumed.load_state_dict(state)
    assert resumed.epoch == 7
    for mask in due:
        assert torch.equal(resumed.draw(present), mask)
    assert not torch.equal(due[0], first)


def test_seeds_tell_draws_apart() -> None:
    present = torch.ones(50, 2, dtype=torch.bool)
    first, again, other = (ModalityDropout(2, 0.5, seed=s).draw(present) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("stratified", [False, True])
def test_the_global_generator_is_left_alone_and_has_no_say(stratified: bool) -> None:
    present = torch.ones(50, 2, dtype=torch.bool)
    draws = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        draws.append(ModalityDropout(2, 0.5, stratified=stratified).draw(present))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*draws)


def draws_of(dropout: ModalityDropout, count: int = 4) -> list[Tensor]:
    return [dropout.draw(mask_of(" ".join(["11"] * 32))) for _ in range(count)]


def test_a_draw_depends_on_seed_rank_epoch_and_batch_alone() -> None:
    dropout = ModalityDropout(2, 0.5, seed=3)
    dropout.begin(2)
    third_epoch = draws_of(dropout)
    assert not any(torch.equal(a, b) for a, b in combinations(third_epoch, 2))
    other = ModalityDropout(2, 0.5, seed=3)
    draws_of(other, 7)
    other.begin(2, batch=3)
    assert torch.equal(draws_of(other, 1)[0], third_epoch[3])
    for name, value in (("rank", 1), ("seed", 4)):
        other = ModalityDropout(2, 0.5, seed=3)
        setattr(other, name, value)
        other.begin(2)
        assert not any(map(torch.equal, draws_of(other), third_epoch))
    other = ModalityDropout(2, 0.5, seed=3)
    other.begin(1)
    assert not any(map(torch.equal, draws_of(other), third_epoch))
