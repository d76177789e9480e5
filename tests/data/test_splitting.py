import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manystream.data.splitting import HeldOut, leak, random_leak

sets = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 12).map(lambda g: f"room{g}" if g else "")),
    min_size=4,
    max_size=60,
)


@given(samples=sets, share=st.floats(0.05, 0.5), seed=st.integers(0, 99))
def test_no_group_is_on_both_sides_and_the_draw_repeats(samples, share, seed):
    targets, groups = map(list, zip(*samples, strict=True))
    # One class of two rooms, so that both sides can have something.
    targets, groups = [*targets, 4, 4], [*groups, "ours", "theirs"]
    draw = HeldOut(share, seed)
    held_out = draw.draw(targets, groups)
    assert held_out.dtype == bool
    assert 0 < held_out.sum() < len(groups)
    assert leak(groups, held_out) == 0
    np.testing.assert_array_equal(held_out, draw.draw(targets, groups))


@given(seed=st.integers(0, 999))
def test_every_class_of_two_groups_is_on_both_sides(seed):
    rng = np.random.default_rng(seed)
    groups = [f"room{g}" for g in range(30) for _ in range(rng.integers(1, 20))]
    label = {f"room{g}": g % 7 for g in range(30)}
    targets = [label[group] for group in groups]
    held_out = HeldOut(0.2, seed).draw(targets, groups)
    for side in (held_out, ~held_out):
        assert set(np.array(targets)[side]) == set(range(7))


def test_each_class_has_its_share():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 12, 600)
    targets = np.repeat(rng.integers(0, 19, 600), sizes)
    groups = np.repeat([f"room{g}" for g in range(600)], sizes)
    held_out = HeldOut(0.2, 3).draw(targets.tolist(), groups.tolist())
    shares = [held_out[targets == number].mean() for number in range(19)]
    assert shares == pytest.approx([0.2] * 19, abs=0.03)


def test_another_seed_is_another_draw():
    targets, groups = [0, 1] * 50, [f"room{i}" for i in range(100)]
    assert (HeldOut(0.2, 0).draw(targets, groups) != HeldOut(0.2, 1).draw(targets, groups)).any()


@pytest.mark.parametrize("groups", [["a"] * 6, ["a"]])
def test_one_group_cannot_be_split(groups):
    with pytest.raises(ValueError, match=r"val_share=0\.2 of .* in 1 groups leaves one side empty"):
        HeldOut().draw([0] * len(groups), groups)


def test_leak_counts_samples_whose_group_is_in_training():
    groups = ["a", "a", "b", "c", "", ""]
    assert leak(groups, np.array([1, 0, 1, 0, 1, 0], bool)) == pytest.approx(1 / 3)


@given(
    groups=st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=2, max_size=8),
    data=st.data(),
)
def test_the_leak_of_a_random_draw_is_the_mean_over_all_draws(groups, data):
    number = data.draw(st.integers(1, len(groups) - 1))
    leaks = []
    for chosen in itertools.combinations(range(len(groups)), number):
        held_out = np.isin(np.arange(len(groups)), chosen)
        # A name that is empty is a group of its own, which never leaks.
        named = [group or f"alone{i}" for i, group in enumerate(groups)]
        leaks.append(leak(named, held_out))
    assert random_leak(groups, number) == pytest.approx(np.mean(leaks))
