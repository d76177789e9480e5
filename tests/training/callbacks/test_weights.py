import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from manystream.training.callbacks.weights import RestoreBest, WeightAverage
from manystream.training.options import Monitor
from tests.training.builders import CPU, tiny_model, tuple_batches

TO_LEARN = {"epochs": 2, "learning_rate": 0.01, **CPU}


def watched_sgd(model, seen):
    """SGD that notes the network's state after every step."""

    def make(groups, lr):
        optimizer = torch.optim.SGD(groups, lr=lr)

        def note(*_):
            seen.append({name: t.clone() for name, t in model.network.state_dict().items()})

        optimizer.register_step_post_hook(note)
        return optimizer

    return make


def averaged(start, states, decay):
    """The average by its definition, of numbers that are not integers."""
    average = {name: t.double() for name, t in start.items()}
    for step, state in enumerate(states, start=1):
        d = min(decay, (1 + step) / (10 + step))
        average = {name: d * average[name] + (1 - d) * t for name, t in state.items()}
    return average


@pytest.mark.parametrize("accumulate_batches", [1, 2])
def test_the_network_ends_as_the_average_of_its_steps(accumulate_batches):
    model, seen = tiny_model(), []
    start = {name: t.clone() for name, t in model.network.state_dict().items()}
    model.fit(
        tuple_batches(32),
        ema_decay=0.3,
        optimizer=watched_sgd(model, seen),
        accumulate_batches=accumulate_batches,
        **TO_LEARN,
    )
    assert len(seen) == 8 // accumulate_batches
    expected = averaged(start, seen, 0.3)
    for name, tensor in model.network.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(tensor, seen[-1][name])
    assert not torch.allclose(model.network.fc.weight, seen[-1]["fc.weight"], atol=1e-4)


def test_the_average_is_what_is_validated_and_training_goes_on_without_it():
    batches, val = tuple_batches(32), tuple_batches(12, seed=1)
    plain, average = tiny_model(), tiny_model()
    expected = plain.fit(batches, val, **TO_LEARN)
    found = average.fit(batches, val, ema_decay=0.9, **TO_LEARN)
    assert found["train_loss"] == expected["train_loss"]
    assert found["val_loss"] != expected["val_loss"]
    assert average.evaluate(val, **CPU)["loss"] == pytest.approx(found["val_loss"][-1], rel=1e-5)


class Played:
    """A network that a callback sees train, without a trainer."""

    def __init__(self):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    @torch.no_grad()
    def step(self, callback, number):
        for tensor in self.network.state_dict().values():
            tensor.add_(number)
        callback.on_train_batch_end(SimpleNamespace(global_step=number), self, None, None, 0)


def test_it_goes_on_from_its_state():
    whole, played = WeightAverage(0.9), Played()
    whole.on_train_start(None, played)
    for number in (1, 2):
        played.step(whole, number)
    saved = whole.state_dict()
    saved["weights"] = {name: t.clone() for name, t in saved["weights"].items()}
    resumed, twin = WeightAverage(0.9), Played()
    twin.network.load_state_dict(played.network.state_dict())
    resumed.load_state_dict(saved)
    resumed.on_train_start(None, twin)
    for callback, of in ((whole, played), (resumed, twin)):
        for number in (3, 4):
            of.step(callback, number)
    assert all(torch.equal(t, resumed.weights[name]) for name, t in whole.weights.items())


def test_a_validation_that_is_broken_off_leaves_the_weights():
    callback, played = WeightAverage(0.9), Played()
    callback.on_train_start(None, played)
    played.step(callback, 1)
    weights = played.network[0].weight.clone()
    callback.on_validation_start(None, played)
    assert not torch.equal(played.network[0].weight, weights)
    callback.on_exception(None, played, KeyboardInterrupt())
    assert torch.equal(played.network[0].weight, weights)


VAL = tuple_batches(24, seed=1)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_best_epochs_weights_are_the_result(ema_decay):
    model = tiny_model()
    # So large a step that a later epoch is not always a better one.
    history = model.fit(
        tuple_batches(24),
        VAL,
        epochs=5,
        learning_rate=0.2,
        schedule="constant",
        monitor="val_loss",
        restore_best=True,
        ema_decay=ema_decay,
        **CPU,
    )
    losses = history["val_loss"]
    assert min(losses) < losses[-1] - 0.01
    assert model.evaluate(VAL, **CPU)["loss"] == pytest.approx(min(losses), rel=1e-5)


def test_training_ends_when_nothing_improves():
    history = tiny_model().fit(
        tuple_batches(8),
        [(torch.zeros(3, 3, 32, 32), torch.zeros(3, 1, 32, 32), torch.arange(3))],
        epochs=9,
        early_stopping_patience=2,
        **CPU,
    )
    # Equal images of three classes: one third is right, whatever the network does.
    assert history["val_mean_class_accuracy"] == pytest.approx([1 / 3] * 3)


def test_without_validation_the_training_loss_can_be_watched():
    model = tiny_model()
    history = model.fit(
        tuple_batches(8),
        epochs=6,
        learning_rate=1e-12,  # no loss can be better for it
        warmup_epochs=0,
        monitor="train_loss",
        early_stopping_patience=1,
        restore_best=True,
        **CPU,
    )
    assert history.num_epochs < 6


def epochs_of(callback, values):
    """Let a callback see epochs with these values, in each of which the network counts on."""
    module = SimpleNamespace(network=nn.Linear(1, 1))
    for epoch, value in enumerate(values):
        nn.init.constant_(module.network.weight, epoch)
        trainer = SimpleNamespace(callback_metrics={callback.monitor.name: torch.tensor(value)})
        callback.on_train_epoch_end(trainer, module)
    return module


@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ([0.1, 0.5, 0.5, 0.2], "max", 1),
        ([3.0, 1.0, 2.0], "min", 1),
        ([math.nan, -1.0, math.nan], "max", 1),
        ([2.0, math.nan], "min", 0),
    ],
)
def test_which_epoch_is_best(values, mode, best):
    callback = RestoreBest(Monitor("val", mode))
    module = epochs_of(callback, values)
    resumed = RestoreBest(Monitor("val", mode))
    resumed.load_state_dict(callback.state_dict())
    resumed.on_train_end(None, module)
    assert module.network.weight.item() == best


def test_a_resumed_run_knows_what_was_best():
    callback, resumed = RestoreBest(Monitor("val", "max")), RestoreBest(Monitor("val", "max"))
    epochs_of(callback, [0.1, 0.7])
    resumed.load_state_dict(callback.state_dict())
    module = epochs_of(resumed, [0.6, 0.5])
    resumed.on_train_end(None, module)
    assert module.network.weight.item() == 1  # the second epoch of the first half


def test_a_monitor_that_the_task_does_not_measure():
    with pytest.raises(
        ValueError, match=r"monitor is 'val_f1'; expected one of val_mean_class_accuracy, val_acc"
    ):
        tiny_model().fit(tuple_batches(8), VAL, monitor="val_f1", **CPU)
