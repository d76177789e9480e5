import math

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.amp import GradScaler

from manystream.training.module import TrainingModule
from manystream.training.options import FitOptions
from manystream.training.trainer import Batches, trainer_session
from tests.training.builders import CPU, tiny_model, tuple_batches

LEARNING_RATE = 0.5
PLAIN = {
    "optimizer": "torch.optim.SGD",
    "learning_rate": LEARNING_RATE,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0,
}
"""Each step goes along the gradient, and as far as it is long."""


def length_of_fit(batches, **options):
    """How far the weights are from where they were."""
    model = tiny_model()
    before = [p.detach().clone() for p in model.parameters()]
    history = model.fit(batches, **{"epochs": 1, **PLAIN, **CPU, **options})
    moved = [p.detach() - q for p, q in zip(model.parameters(), before, strict=True)]
    return torch.cat([m.flatten() for m in moved]).norm().item(), history


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("num_batches", [1, 2])
def test_a_clipped_step_is_as_long_as_asked(precision, fused, num_batches):
    batches = tuple_batches(8 * num_batches)
    options = {
        "precision": precision,
        "optimizer_arguments": {"fused": fused},
        "accumulate_batches": num_batches,
        "log_gradient_norms": True,
    }
    clip = 0.01
    length, history = length_of_fit(batches, gradient_clip=clip, **options)
    assert length == pytest.approx(LEARNING_RATE * clip, rel=1e-3)
    before_clipping = [v[0] for name, v in history.items() if "gradient_norm" in name]
    free, _ = length_of_fit(batches, **options)
    assert free == pytest.approx(LEARNING_RATE * math.hypot(*before_clipping), rel=1e-3)
    assert free > 10 * length


def fit_scaled(first_scale, **changes):
    """Train with a loss scaler, which Lightning by itself has on GPUs only; returns the run."""
    options = FitOptions(**{**PLAIN, "precision": "16-mixed", **changes, **CPU})
    model = tiny_model()
    module = TrainingModule(model.network, model.task, options)
    scaler = GradScaler("cpu", init_scale=first_scale)
    session = trainer_session(
        progress=False,
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=options.gradient_clip,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
    )
    before = [p.detach().clone() for p in module.parameters()]
    with session as trainer:
        trainer.fit(module, Batches(tuple_batches(8)))
    moved = [p.detach() - q for p, q in zip(module.parameters(), before, strict=True)]
    return torch.cat([m.flatten() for m in moved]).norm().item(), scaler.get_scale()


def test_scaled_gradients_are_clipped_as_they_are_without_the_scale():
    length, _ = fit_scaled(1024.0, gradient_clip=0.01)
    assert length == pytest.approx(LEARNING_RATE * 0.01, rel=1e-3)


def test_a_fused_step_with_a_loss_scaler_is_not_clipped_wrongly():
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit_scaled(1024.0, gradient_clip=0.01, optimizer_arguments={"fused": True})


def test_a_first_step_that_the_loss_scaler_leaves_out_is_no_mistake_of_the_schedule():
    length, scale = fit_scaled(2.0**60)  # any warning is an error here
    assert length == 0
    assert scale < 2.0**60
