import math

import pytest
from torch import nn

from manystream.training.optimizer import configure_optimizer, warmup_cosine
from manystream.training.options import FitOptions
from tests.training.builders import tiny_model


def optimizer_of(model, num_steps=100, **changes):
    configured = configure_optimizer(model, FitOptions(**changes), num_steps)
    return configured["optimizer"], configured["lr_scheduler"]["scheduler"]


def test_every_trained_parameter_is_in_exactly_one_group():
    model = tiny_model()
    model.fc.weight.requires_grad_(False)
    optimizer, _ = optimizer_of(model)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(set(grouped)) == len(grouped)
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}


def test_norms_and_biases_do_not_decay():
    model = tiny_model()
    optimizer, _ = optimizer_of(model, weight_decay=0.3)
    groups = optimizer.param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    of_norms = [p for norm in norms for p in norm.parameters() if p.requires_grad]
    assert len(of_norms) > 50
    assert {decay[id(p)] for p in of_norms} == {0.0}
    assert decay[id(model.fc.bias)] == 0.0
    kernels = [p for name, p in model.named_parameters() if "conv" in name and p.dim() == 4]
    assert {decay[id(p)] for p in [*kernels, model.fc.weight]} == {0.3}


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


@pytest.mark.parametrize(("warmup_epochs", "num_warmup"), [(0, 0), (0.5, 5), (1, 10), (99, 40)])
def test_the_warm_up_is_given_in_epochs(warmup_epochs, num_warmup):
    optimizer, schedule = optimizer_of(
        tiny_model(), 40, epochs=4, warmup_epochs=warmup_epochs, learning_rate=0.1
    )
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.1 * warmup_cosine(s, num_warmup, 40) for s in range(40)])
