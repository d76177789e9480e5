import pytest
import torch

from manystream.layers import LinearIntegration, ScalarIntegration
from manystream.models import contributions
from manystream.models.inspection import BalancePenalty
from tests.builders import (
    INTEGRATED_FAMILIES,
    mask_of,
    random_images,
    small_resnet,
    with_absent,
)
from tests.training.builders import CPU, tiny_model, tuple_batches

MASKS = ("11 11 11", "11 10 01 11", "10 10 11")


def penalty_of(network, *arguments, **named):
    penalty = BalancePenalty(network)
    with penalty.watching():
        network(*arguments, **named)
    return penalty.take()


def by_definition(network, images, mask):
    """The penalty from the contributions themselves, held as full maps."""
    variances = []

    def measure(rule, arguments, _):
        rms = [
            rule.contribution(m, raw).square().mean().sqrt() for m, raw in enumerate(arguments[0])
        ]
        variances.append(torch.stack(rms).log().var(correction=0))

    rules = [m for m in network.modules() if isinstance(m, LinearIntegration | ScalarIntegration)]
    handles = [rule.register_forward_hook(measure) for rule in rules]
    network(images, present=mask)
    for handle in handles:
        handle.remove()
    return torch.stack(variances).mean()


def gradients(network, value):
    network.zero_grad()
    value.backward()
    return [p.grad for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("family", INTEGRATED_FAMILIES)
def test_it_is_the_variance_of_what_inspection_shows(family):
    network, mask = small_resnet(3, family=family).eval(), mask_of("111 101 011")
    images = random_images(mask)
    shown = contributions(network, images, mask).values()
    logs = [torch.tensor(list(rms.values()), dtype=torch.float64).log() for rms in shown]
    expected = torch.stack([log.var(correction=0) for log in logs]).mean()
    found = penalty_of(network, images, mask)
    torch.testing.assert_close(found, expected)
    assert found > 0.01


@pytest.mark.parametrize("memory", ["fast", "balanced", "lean", "min"])
@pytest.mark.parametrize("family", INTEGRATED_FAMILIES)
def test_its_gradients_are_those_of_the_definition(family, memory):
    for words in MASKS:
        mask = mask_of(words)
        images = with_absent(random_images(mask), mask, float("nan"))
        plain, network = small_resnet(family=family), small_resnet(family=family)
        network.memory = memory
        expected = gradients(plain, by_definition(plain, images, mask))
        found = gradients(network, penalty_of(network, images, mask))
        assert len(found) == len(expected) > 20
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-10)


def test_it_keeps_no_contribution_for_the_backward_pass():
    def kept_bytes(network, images, watch):
        kept = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = penalty_of(network, images) if watch else network(images)
        assert out.requires_grad
        return sum(kept.values())

    for family in INTEGRATED_FAMILIES:
        network = small_resnet(family=family)
        images = random_images(mask_of("11 11"), size=(64, 64))
        without = kept_bytes(network, images, False)
        assert kept_bytes(network, images, True) < 1.02 * without


def test_streams_without_a_row_do_not_count():
    network, mask = small_resnet(), mask_of("10 10")
    value = penalty_of(network, random_images(mask), mask)
    assert value == 0
    assert all(g.isfinite().all() for g in gradients(network, value))


def test_half_precision_neither_overflows_nor_loses_it():
    network, mask = small_resnet(dtype=torch.float32), mask_of("11 10 11 01")
    images = [100 * x for x in random_images(mask, dtype=torch.float32)]
    expected = penalty_of(network, images, mask)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            found = penalty_of(network, images, mask)
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0)


def test_training_with_it_balances_the_streams():
    def last_of(weight):
        model = tiny_model()
        with torch.no_grad():
            for parameter in model.network.conv1.streams[1].parameters():
                parameter.mul_(30)
        history = model.fit(
            tuple_batches(24), epochs=4, learning_rate=0.02, balance_penalty=weight, **CPU
        )
        return history["balance_penalty"]

    kept, balanced = last_of(1e-9), last_of(3.0)
    assert balanced[0] > 0.1
    assert balanced[-1] < kept[-1] / 2


@pytest.mark.parametrize("changes", [{"family": "late_fusion"}, {"in_channels": {"rgb": 3}}])
def test_what_it_needs(changes):
    with pytest.raises(ValueError, match="streams that meet in an integrated pathway"):
        tiny_model(**changes).fit([], balance_penalty=1.0, **CPU)
