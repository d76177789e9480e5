import math

import pytest
import torch

from manystream.training.options import FitOptions
from manystream.training.schedule import make_schedules, warmup_cosine


def schedules_of(optimizer, num_steps, **changes):
    options = FitOptions(learning_rate=0.1, monitor="val_loss", **changes)
    return make_schedules(optimizer, options, num_steps)


def two_groups(kind=torch.optim.SGD, **arguments):
    """An optimizer whose second group has three times the learning rate."""
    groups = [
        {"params": [torch.zeros(1, requires_grad=True)], "lr": 0.1 * k, "multiplier": k}
        for k in (1.0, 3.0)
    ]
    return kind(groups, lr=0.1, **arguments)


def rates(num_steps=40, **changes):
    """Learning rates of both groups over the steps of a run of four epochs."""
    optimizer = two_groups()
    (schedule,) = schedules_of(optimizer, num_steps, epochs=4, **changes)
    assert schedule["interval"] == "step"
    found = []
    for _ in range(num_steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule["scheduler"].step()
    return torch.tensor(found, dtype=torch.float64).T


def test_warm_up_then_cosine():
    shares = [warmup_cosine(step, num_warmup=4, num_steps=12) for step in range(13)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    expected = [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)]
    assert shares[4:] == pytest.approx(expected)
    assert shares[-1] == 0


def test_without_a_warm_up_the_first_step_has_the_peak():
    assert warmup_cosine(0, 0, 5) == 1.0


def test_a_run_that_is_all_warm_up():
    assert [warmup_cosine(step, 3, 3) for step in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.parametrize(
    ("warmup_epochs", "num_warmup"), [(None, 10), (0, 0), (0.5, 5), (1, 10), (99, 40)]
)
def test_the_warm_up_is_given_in_epochs(warmup_epochs, num_warmup):
    found = rates(warmup_epochs=warmup_epochs)
    expected = [0.1 * warmup_cosine(s, num_warmup, 40) for s in range(40)]
    assert found[0].tolist() == pytest.approx(expected)


def test_the_cosine_ends_at_the_final_learning_rate():
    found = rates(warmup_epochs=0, final_learning_rate=0.02)
    expected = [0.02 + 0.08 * (1 + math.cos(math.pi * s / 40)) / 2 for s in range(40)]
    assert found[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["cosine", "step", "one_cycle", "constant"])
def test_groups_move_in_proportion(schedule):
    found = rates(schedule=schedule, step_epochs=[2], warmup_epochs=1)
    assert found[1].tolist() == pytest.approx((3 * found[0]).tolist())
    assert found[0].max() == pytest.approx(0.1)


@pytest.mark.parametrize(("step_epochs", "falls"), [(1, [10, 20, 30]), ([2, 3], [20, 30])])
def test_steps_at_epochs(step_epochs, falls):
    found = rates(
        schedule="step", step_epochs=step_epochs, learning_rate_factor=0.5, warmup_epochs=0
    )
    expected = [0.1 * 0.5 ** sum(s >= fall for fall in falls) for s in range(40)]
    assert found[0].tolist() == pytest.approx(expected)


def test_constant_stays_after_its_warm_up():
    found = rates(schedule="constant", warmup_epochs=1)[0].tolist()
    assert found == pytest.approx([0.1 * min((s + 1) / 10, 1) for s in range(40)])


@pytest.mark.parametrize(("warmup_epochs", "peak"), [(None, 11), (2, 19)])
def test_one_cycle_rises_and_falls(warmup_epochs, peak):
    found = rates(schedule="one_cycle", warmup_epochs=warmup_epochs)[0]
    assert found.argmax() == peak
    assert (found[: peak + 1].diff() > 0).all()
    assert (found[peak:].diff() < 0).all()
    assert found[-1] < 1e-5


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adagrad])
def test_one_cycle_moves_what_momentum_there_is(kind):
    optimizer = two_groups(kind)
    (schedule,) = schedules_of(optimizer, 10, schedule="one_cycle")
    if kind is torch.optim.AdamW:
        assert optimizer.param_groups[0]["betas"][0] == 0.95
    for _ in range(10):
        optimizer.step()
        schedule["scheduler"].step()


def test_plateau_falls_after_its_patience_and_not_below_the_end():
    optimizer = two_groups()
    warmup, plateau = schedules_of(
        optimizer,
        40,
        epochs=8,
        schedule="plateau",
        plateau_patience=1,
        learning_rate_factor=0.1,
        final_learning_rate=0.005,
    )
    assert (warmup["interval"], plateau["interval"]) == ("step", "epoch")
    assert plateau["monitor"] == "val_loss"
    found, losses = [], [3, 2, 2, 2, 1, 1, 1, 1]
    for loss in losses:
        for _ in range(5):
            found.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            warmup["scheduler"].step()
        plateau["scheduler"].step(loss)
    first, second = zip(*found, strict=True)
    assert first[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    # Epochs 2 and 3 bring nothing, which is more than the patience; so do 5 and 6.
    assert first[5::5] == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.005])
    assert second == pytest.approx([3 * rate for rate in first])


def test_without_a_number_of_steps_it_moves_by_epoch():
    optimizer = two_groups()
    (schedule,) = schedules_of(optimizer, None, epochs=5, warmup_epochs=2)
    assert schedule["interval"] == "epoch"
    found = []
    for _ in range(5):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule["scheduler"].step()
    assert found == pytest.approx([0.1 * warmup_cosine(e, 2, 5) for e in range(5)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "schedule is 'linear'; expected one of cosine, step"),
        ({"step_epochs": 0}, "step_epochs is 0"),
        ({"step_epochs": [3, 2]}, r"step_epochs is \[3, 2\]"),
        ({"step_epochs": []}, r"step_epochs is \[\]"),
        ({"learning_rate_factor": 1.5}, "learning_rate_factor is 1.5; expected between 0 and 1"),
        ({"plateau_patience": -1}, "plateau_patience is -1"),
        ({"final_learning_rate": -1.0}, "final_learning_rate is -1.0"),
        ({"schedule": "one_cycle", "warmup_epochs": 30.0}, "rises for less than that"),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        FitOptions(**changes)
