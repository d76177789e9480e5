from types import SimpleNamespace

import pytest
import torch
from torch import nn

from manystream.training.recipe.averaging import WeightAverage
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
