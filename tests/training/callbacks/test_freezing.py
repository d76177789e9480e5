from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from manystream.tasks import Classification
from manystream.training import FitOptions
from manystream.training.callbacks.freezing import StreamFreezing
from manystream.training.callbacks.subset_accuracy import logged_as
from manystream.training.distributed import AfterBackwardStrategy
from tests.training.builders import CPU, NUM_CLASSES, tiny_model, tuple_batches

SAYS_NOTHING = [(torch.zeros(3, 3, 32, 32), torch.zeros(3, 1, 32, 32), torch.arange(3))]
"""Equal images of three classes: one third is right, whatever a network has learned."""


TASK = Classification(NUM_CLASSES)


def states_of_steps(model, epochs, **changes):
    """The network's state after every step, two a epoch; and the history."""
    seen = []

    def make(groups, lr):
        optimizer = torch.optim.AdamW(groups, lr=lr)

        def note(*_):
            seen.append({name: t.clone() for name, t in model.network.state_dict().items()})

        optimizer.register_step_post_hook(note)
        return optimizer

    options = {"subset_accuracy_every": 1, "learning_rate": 0.01, "optimizer": make}
    history = model.fit(
        tuple_batches(16), SAYS_NOTHING, epochs=epochs, **{**options, **changes}, **CPU
    )
    return seen, history


@pytest.mark.parametrize("memory", ["fast", "balanced", "lean", "min"])
def test_a_frozen_stream_stands_still_and_the_rest_goes_on(memory):
    model = tiny_model(memory=memory)
    seen, history = states_of_steps(model, 4, freeze_patience=1)
    # Measured first in epoch 0, no better in epoch 1, so frozen from epoch 2 on.
    assert history["frozen/rgb"] == history["frozen/depth"] == [0, 0, 1, 1]
    moved = {name for name in seen[0] if not torch.equal(seen[3][name], seen[7][name])}
    assert not any(".streams." in name for name in moved)
    shared = {name for name, _ in model.network.named_parameters() if ".streams." not in name}
    assert shared <= moved
    # Until then streams move: all but the last block's norms, whose output nobody reads.
    before = {name for name in seen[0] if not torch.equal(seen[0][name], seen[3][name])}
    unread = {name for name, p in model.network.named_parameters() if not p.requires_grad}
    assert set(seen[0]) - before == unread


def test_until_it_freezes_the_run_is_the_same():
    frozen, free = tiny_model(), tiny_model()
    with_freezing, _ = states_of_steps(frozen, 3, freeze_patience=1, schedule="constant")
    without, _ = states_of_steps(free, 3, schedule="constant")
    for step in range(4):
        assert all(torch.equal(t, without[step][n]) for n, t in with_freezing[step].items())
    assert not torch.equal(
        with_freezing[4]["conv1.streams.0.weight"], without[4]["conv1.streams.0.weight"]
    )


def test_the_network_comes_back_as_trainable_as_it_was():
    model = tiny_model()
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    states_of_steps(model, 3, freeze_patience=1)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trainable
    assert not all(trainable.values())  # the last block's stream norms never train
    assert all(m.training for m in model.network.modules())


def judged(callback, accuracies, module, world_size=1):
    """Let a callback see epochs with these accuracies of the stream rgb by itself."""
    logged = []
    for epoch, accuracy in enumerate(accuracies):
        metrics = {} if accuracy is None else {logged_as("rgb", TASK): torch.tensor(accuracy)}
        trainer = SimpleNamespace(
            callback_metrics=metrics, world_size=world_size, current_epoch=epoch
        )
        module.log = lambda name, value, **_: logged.append(value)
        callback.on_train_epoch_end(trainer, module)
    return logged


@pytest.mark.parametrize(
    ("accuracies", "frozen"),
    [
        ([0.1, 0.2, 0.2, 0.2, 0.9], [0, 0, 0, 0, 1]),
        ([0.3, 0.2, 0.4, 0.3, 0.5, 0.5], [0] * 6),
        ([0.3, None, 0.3, None, 0.3, None], [0, 0, 0, 0, 0, 1]),
    ],
)
@pytest.mark.parametrize("resumed_after", [None, 2])
def test_patience_counts_measurements(accuracies, frozen, resumed_after):
    module = SimpleNamespace(network=tiny_model().network)
    callback = StreamFreezing(2, ["rgb"], TASK)
    found = judged(callback, accuracies[:resumed_after], module)
    if resumed_after is not None:
        again = StreamFreezing(2, ["rgb"], TASK)
        again.load_state_dict(callback.state_dict())
        found += judged(again, accuracies[resumed_after:], module)
    assert found == frozen


def test_a_resumed_run_has_its_streams_frozen():
    model = tiny_model()
    callback = StreamFreezing(1, ["rgb", "depth"], TASK)
    callback.load_state_dict({"frozen": ["depth"], "best": {}, "waited": {}})
    callback.on_train_start(SimpleNamespace(world_size=1), SimpleNamespace(network=model.network))
    norms = model.network.bn1.streams
    assert [norm.training for norm in norms] == [True, False]
    assert [norm.weight.requires_grad for norm in norms] == [True, False]


@pytest.mark.parametrize(
    ("strategy", "coming"), [(DDPStrategy, True), (AfterBackwardStrategy, False)]
)
def test_gradients_that_processes_have_agreed_on_keep_coming_and_are_dropped(strategy, coming):
    model = tiny_model()
    callback = StreamFreezing(1, ["rgb", "depth"], TASK)
    callback.load_state_dict({"frozen": ["depth"], "best": {}, "waited": {}})
    trainer = SimpleNamespace(world_size=2, strategy=strategy())
    module = SimpleNamespace(network=model.network)
    callback.on_train_start(trainer, module)
    rgb, depth, _ = tuple_batches(8)[0]
    model([rgb, depth]).sum().backward()
    assert (model.network.conv1.streams[1].weight.grad is not None) is coming
    callback.on_before_optimizer_step(trainer, module, None)
    assert model.network.conv1.streams[1].weight.grad is None
    assert model.network.conv1.streams[0].weight.grad is not None
    assert isinstance(model.network.bn1.streams[1], nn.BatchNorm2d)
    assert not model.network.bn1.streams[1].training


def test_what_it_needs():
    with pytest.raises(ValueError, match="nothing measures streams by themselves"):
        FitOptions(freeze_patience=3)
    with pytest.raises(ValueError, match="'rgb' has no pathway of its own in this network"):
        states_of_steps(tiny_model(family="early_fusion"), 1, freeze_patience=1)


def test_a_first_measurement_that_is_no_number_is_not_the_best():
    freezing = StreamFreezing(1, ("rgb",), TASK)
    for value in (float("nan"), 0.5, 0.6):
        freezing._judge(None, None, "rgb", value)
    assert freezing.frozen == []
    assert freezing.state_dict()["best"] == {"rgb": 0.6}
