import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from manystream.training.options import FitOptions
from manystream.training.recipe.best import RestoreBest
from tests.training.builders import CPU, tiny_model, tuple_batches

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
        trainer = SimpleNamespace(callback_metrics={callback.monitor: torch.tensor(value)})
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
    callback = RestoreBest("val", mode)
    module = epochs_of(callback, values)
    resumed = RestoreBest("val", mode)
    resumed.load_state_dict(callback.state_dict())
    resumed.on_train_end(None, module)
    assert module.network.weight.item() == best


def test_a_resumed_run_knows_what_was_best():
    callback, resumed = RestoreBest("val", "max"), RestoreBest("val", "max")
    epochs_of(callback, [0.1, 0.7])
    resumed.load_state_dict(callback.state_dict())
    module = epochs_of(resumed, [0.6, 0.5])
    resumed.on_train_end(None, module)
    assert module.network.weight.item() == 1  # the second epoch of the first half


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"monitor": "val_f1"}, "monitor is 'val_f1'; expected one of val_mean_class_accuracy"),
        ({"early_stopping_patience": 0}, "early_stopping_patience is 0; expected at least 1"),
        ({"ema_decay": 1.0}, r"ema_decay is 1.0; expected \[0, 1\)"),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        FitOptions(**changes)
