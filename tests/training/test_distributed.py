import os
from functools import partial

import pytest
import torch

from manystream.training import FitOptions
from manystream.training.feed import Dealt, share_of
from tests.builders import small_resnet
from tests.processes import KILLED, in_processes
from tests.training.builders import repeatable
from tests.training.together import (
    any_loader,
    averaged_gradients,
    half_steps,
    own_loader,
    state_after,
    step,
    train,
    train_on_any,
    train_on_lists,
    train_on_shards,
    train_states,
    train_until_sigterm,
    validate_until_sigterm,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("distributed")]

MODES = ("fast", "balanced", "lean", "min")
FAMILIES = ("li_net3", "li_net3_soma", "direct_mixing_conv", "late_fusion")
PATTERNS = {
    "mixed": "11 01 10 11 11 11 01 10",
    "absent in one": "11 01 01 11 01 01 01 01",
    "one each": "10 10 10 10 01 01 01 01",
    "absent in both": "01 01 01 01 01 01 01 01",
    "one row in all": "01 01 01 11 01 01 01 01",
}
"""Streams of the eight samples of a batch; the second process has the last four."""

CLOSE = {"rtol": 1e-10, "atol": 1e-13}


NETWORKS = {family: {"family": family} for family in FAMILIES}
NETWORKS["a norm per subset"] = {"subset_norms": True}


@pytest.fixture(scope="module", params=[False, True], ids=["full views", "all subsets"])
def joint_steps(request):
    """For each network and pattern, what both processes have after a step with joint norms."""
    how = {"joint": True, "subsets": request.param}
    cases = [
        {"patterns": patterns, **layout, **how}
        for layout in NETWORKS.values()
        for patterns in PATTERNS.values()
    ]
    first, second = in_processes(half_steps, cases, count=2)
    names = [(network, name) for network in NETWORKS for name in PATTERNS]
    return {"subsets": request.param} | dict(
        zip(names, zip(first, second, strict=True), strict=True)
    )


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("layout", NETWORKS)
def test_two_processes_with_joint_norms_are_one_with_the_joined_batch(joint_steps, layout, name):
    """Also where they have unequal numbers of views."""
    network = small_resnet(**NETWORKS[layout])
    step(network, PATTERNS[name], subsets=joint_steps["subsets"])
    gradients, buffers = state_after(network)
    for [(own_gradients, own_buffers)] in joint_steps[layout, name]:
        torch.testing.assert_close(own_gradients, gradients, **CLOSE)
        torch.testing.assert_close(own_buffers, buffers, **CLOSE)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_with_joint_norms_are_one_with_the_joined_batch():
    cases = [{"patterns": p, "joint": True, "on_gpus": True} for p in PATTERNS.values()]
    for states in in_processes(half_steps, cases, count=2):
        for patterns, [(own_gradients, own_buffers)] in zip(PATTERNS.values(), states, strict=True):
            network = small_resnet()
            step(network, patterns)
            gradients, buffers = state_after(network)
            torch.testing.assert_close(own_gradients, gradients, rtol=1e-8, atol=1e-11)
            torch.testing.assert_close(own_buffers, buffers, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_stay_where_no_process_has_a_row(joint_steps, family):
    before = dict(small_resnet(family=family).named_buffers())
    for [(gradients, after)] in joint_steps[family, "absent in both"]:
        still = [n for n in after if ".streams.0." in n]
        assert still
        assert all(torch.equal(after[n], before[n]) for n in still)
        moved = [n for n in after if ".streams.1." in n]
        assert not any(torch.equal(after[n], before[n]) for n in moved)
        zero = [n for n in gradients if ".streams.0." in n]
        assert zero
        assert not any(gradients[n].any() for n in zero)


@pytest.fixture(scope="module")
def separate_steps():
    """For each pattern, a step in every memory mode; each process has its own statistics."""
    cases = [
        {"patterns": patterns, "modes": MODES, "block": block}
        for patterns in PATTERNS.values()
        for block in ("basic", "bottleneck")
    ]
    first, second = in_processes(half_steps, cases, count=2)
    names = [(name, block) for name in PATTERNS for block in ("basic", "bottleneck")]
    return dict(zip(names, zip(first, second, strict=True), strict=True))


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_gradients_are_the_mean_of_both_processes(separate_steps, name, block):
    halves = []
    for rows in (slice(0, 4), slice(4, 8)):
        network = small_resnet(block=block)
        step(network, PATTERNS[name], rows)
        halves.append(state_after(network))
    (first, first_buffers), (second, second_buffers) = halves
    mean = {n: (first[n] + second[n]) / 2 for n in first}
    for states, buffers in zip(
        separate_steps[name, block], (first_buffers, second_buffers), strict=True
    ):
        torch.testing.assert_close(states[0][0], mean, **CLOSE)
        torch.testing.assert_close(states[0][1], buffers, **CLOSE)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_every_memory_mode_gives_the_same_bits(separate_steps, name, block):
    for states in separate_steps[name, block]:
        for mode, state in zip(MODES, states, strict=True):
            for part, expected in zip(state, states[0], strict=True):
                different = [n for n in part if not torch.equal(part[n], expected[n])]
                assert different == [], mode


@pytest.mark.parametrize(
    ("changes", "layout"),
    [
        ({}, {"count": 27}),
        ({"subsets": "all"}, {"subset_norms": True, "count": 29}),
    ],
)
def test_training_in_two_processes_is_training_in_one(changes, layout):
    """Also where one of them has a sample more in the last step of an epoch."""
    exact = {"precision": "64-true", **changes}
    run = partial(train, **layout)
    first, second = in_processes(run, 4, exact, count=2)
    [(weights, history, _)] = in_processes(run, 8, exact)
    assert first[1] == second[1]
    assert (first[1].pop("num_processes"), history.pop("num_processes")) == ([2, 2], [1, 1])
    for name, values in repeatable(history).items():
        assert first[1][name] == pytest.approx(values, rel=1e-5), name
    assert history["val_num_samples"] == [13, 13]
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=0)
    torch.testing.assert_close(first[0], weights, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("changes", [{}, {"accumulate_batches": 2, "gradient_clip": 0.05}])
def test_averaging_after_the_backward_pass_is_averaging_while_it_runs(changes):
    changes = {"precision": "64-true", "sync_batchnorm": False, **changes}
    after = in_processes(train, 4, changes, count=2)
    (expected, expected_history, _), _ = in_processes(
        train, 4, {**changes, "strategy": "ddp"}, count=2
    )
    for weights, history, _ in after:
        assert repeatable(history).keys() == repeatable(expected_history).keys()
        for name, values in repeatable(expected_history).items():
            assert history[name] == pytest.approx(values, rel=1e-6), name
        torch.testing.assert_close(weights, expected, rtol=1e-7, atol=1e-9)


def test_gradients_are_averaged_whatever_their_layout_and_where_there_is_none():
    for averaged in in_processes(averaged_gradients, count=2):
        ones, halves, frozen, strided = averaged
        torch.testing.assert_close(ones, torch.arange(24.0).view(2, 3, 2, 2))
        torch.testing.assert_close(strided, torch.full((3, 2), 2.0))
        torch.testing.assert_close(halves, torch.full((2,), 0.5))
        assert frozen is None


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_replay_their_steps():
    on_gpus = {"accelerator": "gpu", "precision": "64-true", "sync_batchnorm": False, "epochs": 4}
    replayed = in_processes(train, 4, {**on_gpus, "cuda_graphs": "on"}, count=2)
    (expected, expected_history, _), _ = in_processes(
        train, 4, {**on_gpus, "strategy": "ddp"}, count=2
    )
    for weights, history, _ in replayed:
        assert history["train_loss"] == pytest.approx(expected_history["train_loss"], rel=1e-6)
        for name, weight in weights.items():
            torch.testing.assert_close(weight.cpu(), expected[name].cpu(), rtol=1e-6, atol=1e-8)


def test_streams_are_dropped_differently_and_again_the_same_in_each_process():
    dropout = {"modality_dropout": True, "modality_dropout_rate": 0.6}
    (_, _, first), (_, _, second) = in_processes(train, 4, dropout, count=2)
    (_, _, again), _ = in_processes(train, 4, dropout, count=2)
    assert len(first) == len(second) == 6
    assert not all(map(torch.equal, first, second))
    assert all(map(torch.equal, first, again))
    lost = 1 - torch.cat([*first, *second]).float().mean().item()
    assert 0.1 < lost < 0.5


FREEZING = {
    "sync_batchnorm": False,
    "freeze_patience": 1,
    "subset_accuracy_every": 1,
    "ema_decay": 0.9,
    "learning_rate": 1e-9,  # nothing gets better
}


def test_a_frozen_stream_has_the_same_statistics_in_both_processes():
    first, second = in_processes(train_states, 4, {**FREEZING, "epochs": 4}, count=2)
    frozen = [name for name in first[1] if "running" in name and ".streams." in name]
    assert frozen
    for name in frozen:
        assert torch.equal(first[0][name], first[1][name]), "it is frozen from here on"
        for of_first, of_second in zip(first, second, strict=True):
            torch.testing.assert_close(of_first[name], of_second[name], rtol=0, atol=0)


def assert_same_runs(resumed, whole):
    for (weights, history, _), (expected_weights, expected_history, _) in zip(
        resumed, whole, strict=True
    ):
        torch.testing.assert_close(weights, expected_weights, rtol=0, atol=0)
        assert repeatable(history) == repeatable(expected_history)


@pytest.mark.parametrize(
    ("changes", "kill_at"), [({}, 9), ({**FREEZING, "epochs": 4, "learning_rate": 1e-3}, 19)]
)
def test_two_killed_processes_end_as_if_they_had_not_been(tmp_path, changes, kill_at):
    changes = {"modality_dropout": True, "checkpoint_every_steps": 1, **changes}
    whole = in_processes(train, 4, changes, tmp_path / "whole", count=2)
    cut = tmp_path / "cut"
    assert KILLED in in_processes(train, 4, changes, cut, False, kill_at, count=2, may_fail=True)
    assert list((cut / "checkpoints").glob("epoch-*"))
    assert not (tmp_path / "cut/checkpoints/final.ckpt").exists()
    resumed = in_processes(train, 4, changes, cut, True, count=2)
    assert_same_runs(resumed, whole)


@pytest.mark.parametrize("signalled", [0, 1])
@pytest.mark.parametrize("moment", [("step", 1), ("validation", 0)])
def test_sigterm_to_one_of_two_processes_ends_both_and_nothing_is_lost(tmp_path, moment, signalled):
    whole = in_processes(train, 4, {"modality_dropout": True}, tmp_path / "whole", count=2)
    cut = tmp_path / "cut"
    ended = in_processes(train_until_sigterm, signalled, moment, cut, count=2)
    assert [status for status, _ in ended] == [143, 143]
    [state] = (cut / "checkpoints").glob("epoch-*")
    assert all(f"its state is in {state}" in message for _, message in ended)
    resumed = in_processes(train, 4, {"modality_dropout": True}, cut, True, count=2)
    assert_same_runs(resumed, whole)


@pytest.mark.parametrize("signalled", [0, 1])
def test_sigterm_in_a_long_validation_does_not_wait_for_its_end(signalled):
    ended = in_processes(validate_until_sigterm, signalled, count=2)
    assert [status for status, _ in ended] == [143, 143]
    assert all(validated < 50 for _, validated in ended), "of about 100 each"


@pytest.mark.parametrize("counts", [(6, 2), (2, 6)])
def test_an_epoch_of_unequal_iterables_ends_with_the_first_that_does(counts):
    (first, history), (second, other) = in_processes(train_on_shards, counts, count=2)
    assert history == other
    assert history["num_processes"] == [2, 2]
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_lists_of_unequal_length_are_refused_by_all():
    [first], [second] = in_processes(train_on_lists, (6, 2), count=2)
    assert "train_loader gives 3 batches to this process, 1 to 3 to all" in first
    assert "train_loader gives 1 batches to this process, 1 to 3 to all" in second


def test_a_run_of_two_processes_is_not_resumed_by_one(tmp_path):
    changes = {"checkpoint_every_steps": 1}
    in_processes(train, 4, changes, tmp_path, False, 9, count=2, may_fail=True)
    [error] = in_processes(train, 4, changes, tmp_path, True, may_fail=True)
    assert "the run had 2 processes; resume it with as many, these are 1" in error


@pytest.mark.parametrize("shuffle", [True, False])
def test_any_loader_is_shared_out(shuffle):
    (first, history), (second, other) = in_processes(train_on_any, 4, shuffle, count=2)
    assert history == other
    assert history["val_num_samples"] == [26, 26]
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("even", [True, False])
def test_batches_are_dealt_out_in_turn(even):
    shares = [Dealt(range(8), rank, 3, even=even) for rank in range(3)]
    dealt = [list(share) for share in shares]
    assert list(map(len, shares)) == list(map(len, dealt))
    left = [[], []] if even else [[6], [7]]
    assert dealt == [[0, 3, *left[0]], [1, 4, *left[1]], [2, 5]]


def test_a_shuffling_loader_is_shared_without_reading_what_is_others():
    shares = [share_of(any_loader(4, True), rank, 2, seed=3) for rank in range(2)]
    targets = [torch.cat([batch[2] for batch in share]) for share in shares]
    assert [len(t) for t in targets] == [13, 13]
    whole = torch.cat([batch[2] for batch in any_loader(4, False)])
    assert torch.cat(targets).bincount().tolist() == whole.bincount().tolist()


def test_batches_of_a_plain_list_and_of_an_iterator_are_shared():
    assert list(share_of(list("abcde"), 1, 2)) == ["b", "d"]
    assert list(share_of(iter("abcde"), 0, 2, even=False)) == ["a", "c", "e"]
    loader = own_loader(4)
    assert share_of(loader, 1, 2) is loader


def test_torchrun_says_how_many_processes_there_are(monkeypatch):
    assert FitOptions(devices=2).distribution()["strategy"] == "ddp_after_backward"
    alone = FitOptions().distribution()
    assert (alone["devices"], alone["strategy"]) == (1, "auto")
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
    }.items():
        monkeypatch.setitem(os.environ, name, value)
    expected = {"devices": 2, "num_nodes": 2, "strategy": "ddp_after_backward"}
    assert FitOptions().distribution() == expected
    assert FitOptions(devices=2).distribution() == expected
    with pytest.raises(ValueError, match="devices is 3, but torchrun started 2 processes"):
        FitOptions(devices=3).distribution()
