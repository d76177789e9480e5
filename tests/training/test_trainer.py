import pytest
import torch

from tests.training.builders import CPU, tiny_model, tuple_batches


def state_while_training(model, read, **changes):
    seen = []
    model.network.register_forward_pre_hook(lambda *_: seen.append(read()))
    model.fit(tuple_batches(8), epochs=1, **changes, **CPU)
    return seen[0]


def test_tf32_is_for_the_run_only():
    before = torch.get_float32_matmul_precision()
    found = state_while_training(tiny_model(), torch.get_float32_matmul_precision, precision="tf32")
    assert (before, found) == ("highest", "high")
    assert torch.get_float32_matmul_precision() == before


def test_deterministic_is_for_the_run_only():
    found = state_while_training(
        tiny_model(), torch.are_deterministic_algorithms_enabled, deterministic=True
    )
    assert found
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("precision", "weights", "features"),
    [
        ("32-true", torch.float32, torch.float32),
        ("bf16-mixed", torch.float32, torch.bfloat16),
        ("64-true", torch.float64, torch.float64),
    ],
)
def test_arithmetic_is_what_was_asked_for(precision, weights, features):
    model, seen = tiny_model(), []
    model.network.layer1[0].conv1.streams[0].register_forward_hook(
        lambda *a: seen.append(a[2].dtype)
    )
    history = model.fit(tuple_batches(8), tuple_batches(8), epochs=1, precision=precision, **CPU)
    assert model.network.fc.weight.dtype == weights
    assert set(seen) == {features}
    assert 0 < history["train_loss"][0] < 10
