"""On a GPU: what training does differently there."""

import math

import pytest
import torch

from manystream.training.callbacks.loss_guard import NonFiniteLossError
from manystream.training.module import TrainingModule
from manystream.training.options import FitOptions
from manystream.training.trainer import Batches, trainer_session
from tests.training.builders import tiny_model, tuple_batches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = {"accelerator": "gpu", "progress": False}


@pytest.mark.parametrize("precision", ["32-true", "tf32", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_every_precision_learns_with_clipping_and_an_average(precision, optimizer):
    model = tiny_model()
    history = model.fit(
        tuple_batches(96),
        tuple_batches(24, seed=1),
        epochs=6,
        optimizer=optimizer,
        learning_rate=0.01,
        precision=precision,
        gradient_clip=1.0,
        ema_decay=0.9,
        balance_penalty=0.01,
        log_gradient_norms=True,
        subset_accuracy_every=1,
        restore_best=True,
        **GPU,
    )
    assert history["train_loss"][-1] < 0.7 * history["train_loss"][0]
    assert history["val_mean_class_accuracy"][-1] > 0.6


def test_steps_are_fused_unless_a_loss_scaler_needs_its_hands_on_them():
    def is_fused(precision):
        model = tiny_model()
        options = FitOptions(precision=precision, **GPU)
        module = TrainingModule(model.network, model.task, options)
        # Not seen from a step: the first ones may be left out by the loss scaler.
        session = trainer_session(
            progress=False, accelerator="gpu", max_epochs=1, precision=precision
        )
        with session as trainer:
            trainer.fit(module, Batches(tuple_batches(8)))
        return trainer.optimizers[0].param_groups[0]["fused"]

    assert is_fused("bf16-mixed") is True
    assert is_fused("16-mixed") is None


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_loss_that_is_not_finite_stops_its_own_step(precision):
    batches = tuple_batches(24)
    batches[1][0][2] = math.nan
    model = tiny_model()
    with pytest.raises(NonFiniteLossError, match="batch 1 in epoch 0"):
        model.fit(batches, epochs=1, precision=precision, **GPU)
    assert all(p.isfinite().all() for p in model.parameters())


def test_deterministic_runs_repeat():
    def trained():
        model = tiny_model(dropout=0.2)
        model.fit(tuple_batches(16), epochs=2, deterministic=True, modality_dropout=True, **GPU)
        return model.state_dict()

    first, again = trained(), trained()
    assert all(torch.equal(first[name], again[name]) for name in first)
