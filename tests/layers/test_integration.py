import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given

from manystream.functional import linear_integrate, scalar_integrate
from manystream.layers import LinearIntegration, ScalarIntegration
from manystream.models.families import FAMILIES
from manystream.models.memory_modes import MemoryMode
from manystream.presence import Presence, Views
from tests.builders import (
    compact_batch,
    mask_of,
    presences,
    random_images,
    randomise,
    small_resnet,
)


@pytest.mark.parametrize("num_streams", [1, 2, 3])
def test_streams_begin_with_equal_shares(num_streams: int) -> None:
    rule = LinearIntegration(num_streams, 4, 6)
    assert len(rule.stream_weights) == num_streams
    for weight in rule.stream_weights:
        assert torch.equal(weight, torch.full((6, 6, 1, 1), 1 / num_streams))


@pytest.mark.parametrize("channels", [1, 6, 64])
def test_a_square_integrated_kernel_begins_orthogonal(channels: int) -> None:
    torch.manual_seed(0)
    kernel = LinearIntegration(2, channels, channels).integrated_weight.detach().flatten(1)
    torch.testing.assert_close(kernel @ kernel.t(), torch.eye(channels), rtol=0, atol=1e-5)
    other = LinearIntegration(2, channels, channels).integrated_weight.detach().flatten(1)
    assert channels == 1 or not torch.equal(kernel, other)


@pytest.mark.parametrize(("in_channels", "out_channels"), [(64, 128), (256, 64)])
def test_another_integrated_kernel_begins_a_tenth_of_kaiming(
    in_channels: int, out_channels: int
) -> None:
    torch.manual_seed(0)
    weight = LinearIntegration(2, in_channels, out_channels).integrated_weight
    assert weight.shape == (out_channels, in_channels, 1, 1)
    # Gain sqrt(2 / (1 + a²)) with a² = 5, times sqrt(3 / fan_in), times 0.1.
    bound = 0.1 * math.sqrt(2 / 6) * math.sqrt(3 / in_channels)
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_the_bias_begins_at_zero() -> None:
    assert torch.equal(LinearIntegration(2, 4, 6, bias=True).bias, torch.zeros(6))


def test_the_first_layer_has_no_integrated_kernel() -> None:
    names = dict(LinearIntegration(2, None, 6).named_parameters()).keys()
    assert names == {"stream_weights.0", "stream_weights.1"}
    names = dict(LinearIntegration(1, 3, 6, bias=True).named_parameters()).keys()
    assert names == {"stream_weights.0", "integrated_weight", "bias"}


def test_reset_returns_to_the_initial_values() -> None:
    rule = LinearIntegration(2, 6, 6)
    randomise(rule)
    assert not torch.equal(rule.stream_weights[0], torch.full((6, 6, 1, 1), 0.5))
    rule.reset_parameters()
    assert torch.equal(rule.stream_weights[0], torch.full((6, 6, 1, 1), 0.5))


@pytest.mark.parametrize("words", ["11 11", "01 11 10", "10 10"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_the_module_is_the_function_of_its_parameters(words: str, bias: bool, first: bool) -> None:
    rule = LinearIntegration(2, None if first else 3, 4, stride=2, bias=bias).double()
    randomise(rule)
    batch = compact_batch(mask_of(words), size=(5, 7), integrated_channels=None if first else 3)
    raw = compact_batch(mask_of(words), channels=4, size=(3, 4)).streams
    expected = linear_integrate(
        raw,
        [rule.stream_weights[0], rule.stream_weights[1]],
        batch.views.runs,
        batch.views.num_views,
        batch.integrated,
        rule.integrated_weight,
        rule.bias,
        stride=2,
    )
    integrated, handed_on = rule(raw, batch.views, batch.integrated)
    assert torch.equal(integrated, expected)
    assert all(map(torch.equal, handed_on, raw))


@pytest.mark.parametrize("words", ["11 11", "01 11 10", "10 10"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_the_scalar_module_is_the_function_of_its_parameters(
    words: str, bias: bool, first: bool
) -> None:
    rule = ScalarIntegration(2, None if first else 3, 4, stride=2, bias=bias).double()
    assert rule.integrated_scalar is None if first else rule.integrated_scalar.item() > 0
    randomise(rule)
    batch = compact_batch(mask_of(words), size=(5, 7), integrated_channels=None if first else 3)
    raw = compact_batch(mask_of(words), channels=4, size=(3, 4)).streams
    expected = scalar_integrate(
        raw,
        [rule.stream_scalars[0], rule.stream_scalars[1]],
        batch.views.runs,
        batch.views.num_views,
        batch.integrated,
        rule.integrated_weight,
        rule.integrated_scalar,
        rule.bias,
        stride=2,
    )
    integrated, handed_on = rule(raw, batch.views, batch.integrated)
    assert torch.equal(integrated, expected)
    assert all(map(torch.equal, handed_on, raw))


def test_scalars_return_to_their_initial_values() -> None:
    rule = ScalarIntegration(2, 3, 4, bias=True)
    randomise(rule)
    assert rule.stream_scalars[0].item() != 1
    rule.reset_parameters()
    assert [scalar.tolist() for scalar in rule.stream_scalars] == [[1.0], [1.0]]
    assert rule.integrated_scalar.item() == pytest.approx(0.2)
    assert not rule.bias.any()


@pytest.mark.parametrize("rule", [LinearIntegration(2, None, 4), ScalarIntegration(2, None, 4)])
def test_one_streams_share_by_itself(rule: LinearIntegration | ScalarIntegration) -> None:
    rule = rule.double()
    randomise(rule)
    batch = compact_batch(mask_of("11 11 11"), channels=4)
    shares = [rule.contribution(m, raw) for m, raw in enumerate(batch.streams)]
    torch.testing.assert_close(rule(list(batch.streams), batch.views)[0], sum(shares))


class PlainLinear(LinearIntegration):
    """The linear rule by its ordinary operations alone."""

    def fused(self) -> None:
        return None


class PlainScalar(ScalarIntegration):
    """The scalar rule by its ordinary operations alone."""

    def fused(self) -> None:
        return None


@pytest.mark.parametrize("build", [Views.full_only, Views.with_subsets])
@pytest.mark.parametrize(
    "rules", [(LinearIntegration, PlainLinear), (ScalarIntegration, PlainScalar)]
)
@pytest.mark.parametrize("bias", [False, True])
@given(words=presences(max_streams=3, max_samples=4))
def test_the_fused_form_of_a_rule_is_its_plain_one(build, rules, bias: bool, words: str) -> None:
    mask = mask_of(words)
    fused, plain = (rule(mask.shape[1], 3, 4, stride=2, bias=bias).double() for rule in rules)
    randomise(fused)
    plain.load_state_dict(fused.state_dict())
    views = build(Presence.from_mask(mask))
    raw = [x.requires_grad_() for x in compact_batch(mask, channels=4, size=(3, 2)).streams]
    z = torch.randn(views.num_views, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    found = []
    for rule in (fused, plain):
        out, _ = rule(raw, views, z)
        cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        inputs = [*raw, z, *rule.parameters()]
        found.append([out, *torch.autograd.grad(out, inputs, cotangent)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-11)


class Halves(LinearIntegration):
    """A user's rule that changes what a stream adds, and says nothing of a fused form."""

    def contribution(self, stream: int, raw: torch.Tensor) -> torch.Tensor:
        return super().contribution(stream, raw) / 2


def test_a_changed_contribution_is_not_replaced_by_the_fused_form_of_another_rule() -> None:
    rule, changed = LinearIntegration(2, None, 4).double(), Halves(2, None, 4).double()
    batch = compact_batch(mask_of("11 01 10"), channels=4)
    whole, half = (
        rule(list(batch.streams), batch.views)[0],
        changed(list(batch.streams), batch.views)[0],
    )
    torch.testing.assert_close(half, whole / 2)


@pytest.mark.parametrize("mode", get_args(MemoryMode))
@pytest.mark.parametrize("half", [False, True])
def test_a_plain_rule_works_in_every_memory_mode(mode: str, half: bool, monkeypatch) -> None:
    family = FAMILIES["li_net3"]
    monkeypatch.setitem(FAMILIES, "li_net3", replace(family, integration=PlainLinear))
    found = []
    for memory in ("fast", mode):
        network = small_resnet(dtype=torch.float32)
        network.memory = memory
        images = random_images(mask_of("11 01 10"), dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            network(images, mask_of("11 01 10")).square().sum().backward()
        found.append([p.grad for p in network.parameters()] + list(network.buffers()))
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
