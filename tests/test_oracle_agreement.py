"""Compact execution against masked execution: logits, gradients and running statistics."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from manystream.models import StreamResNet
from tests.builders import (
    CHANNELS,
    INTEGRATED_FAMILIES,
    mask_of,
    presences,
    random_images,
    small_resnet,
    with_absent,
)
from tests.oracle import masked_forward

SIZES = [(33, 41), (20, 71), (32, 32), (13, 9)]
"""The last two end in maps of one pixel, where one row is one value per channel."""

CORNERS = {
    "one stream": "1 1 1",
    "one sample": "1",
    "one sample of one stream": "10",
    "all present": "11 11 11",
    "stream 1 without a row": "10 10 10 10",
    "stream 0 without a row": "01 01",
    "one row each": "10 01",
    "one row of stream 1": "10 11 10 10",
    "unsorted": "01 11 10 11 01",
    "no order makes runs": "110 101 011 110",
    "two absent per sample": "100 010 001 100",
    "three absent per sample": "1000 0100 0010 0001 1000 1111",
    "a run, an index, one row, none": "1010 0110 1100 1000 0100",
}

FLOOR = 1e-13
"""What rounding leaves of a gradient that is zero."""


def assert_same(actual: Tensor, expected: Tensor, name: str) -> None:
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=1e-10 * scale + FLOOR, msg=lambda text: f"{name}: {text}"
    )


def assert_same_step(
    model: StreamResNet, words: str, size: tuple[int, int], training: bool
) -> None:
    mask = mask_of(words)
    model.train(training)
    images = random_images(mask, size=size)
    compact = [x.requires_grad_() for x in with_absent(images, mask, math.nan)]
    masked = [x.requires_grad_() for x in with_absent(images, mask, 7.0)]
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}

    expected, statistics = masked_forward(model, masked, mask, training=training)
    logits = model(compact, present=mask)
    assert_same(logits, expected, "logits")

    direction = torch.arange(1.0, logits.numel() + 1, dtype=logits.dtype).sin().view_as(logits)
    (expected * direction).sum().backward(inputs=[*masked, *parameters.values()])
    truth = {name: parameter.grad for name, parameter in parameters.items()}
    model.zero_grad(set_to_none=True)
    (logits * direction).sum().backward()
    for name, parameter in parameters.items():
        assert_same(parameter.grad, truth[name], f"gradient of {name}")
    for m, (x, same) in enumerate(zip(compact, masked, strict=True)):
        assert_same(x.grad, same.grad, f"gradient of input {m}")
        assert not x.grad[~mask[:, m]].any(), "an absent image has a gradient"

    buffers = {n: b for n, b in model.named_buffers() if "num_batches" not in n}
    assert buffers.keys() == statistics.keys()
    for name, buffer in buffers.items():
        assert_same(buffer, statistics[name], name)


@pytest.mark.parametrize("family", INTEGRATED_FAMILIES)
@settings(max_examples=30)
@given(
    words=presences(),
    block=st.sampled_from(["basic", "bottleneck"]),
    layers=st.sampled_from([(1, 1, 1, 1), (2, 1, 1, 1), (1, 1, 1, 2)]),
    size=st.sampled_from(SIZES),
    training=st.booleans(),
)
@example("1", "basic", (1, 1, 1, 1), (13, 9), True)
@example("11", "bottleneck", (1, 1, 1, 1), (32, 32), True)
@example("101 011 110 010", "basic", (2, 1, 1, 1), (33, 41), True)
def test_any_pattern(
    family: str,
    words: str,
    block: str,
    layers: tuple[int, ...],
    size: tuple[int, int],
    training: bool,
) -> None:
    model = small_resnet(len(words.split()[0]), block, layers, family=family)
    assert_same_step(model, words, size, training)


@pytest.mark.parametrize("size", [(33, 41), (13, 9)], ids=["last map 2x2", "last map 1x1"])
@pytest.mark.parametrize("words", CORNERS.values(), ids=CORNERS.keys())
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("family", INTEGRATED_FAMILIES)
def test_corner_patterns_over_a_step_and_then_in_eval(
    family: str, block: str, words: str, size: tuple[int, int]
) -> None:
    model = small_resnet(len(words.split()[0]), block, family=family)
    assert_same_step(model, words, size, training=True)
    model.zero_grad(set_to_none=True)
    assert_same_step(model, words, size, training=False)


def test_the_oracle_sees_what_it_is_meant_to_see() -> None:
    """Logits that never use absent images, and statistics that move by the present rows only."""
    model = small_resnet(2)
    mask = mask_of("11 10 01")
    images = random_images(mask, CHANNELS)
    logits, statistics = masked_forward(model, images, mask, training=True)
    others, _ = masked_forward(model, with_absent(images, mask, 5.0), mask, training=True)
    assert torch.equal(logits, others)
    changed = [x + 0.5 * mask[:, m].view(-1, 1, 1, 1) for m, x in enumerate(images)]
    assert not torch.allclose(masked_forward(model, changed, mask, training=True)[0], logits)
    raw = nn.functional.conv2d(images[1][[0, 2]], model.conv1.streams[1].weight, None, 2, 3)
    moved = 0.9 * model.bn1.streams[1].running_mean + 0.1 * raw.mean(dim=(0, 2, 3))
    torch.testing.assert_close(statistics["bn1.streams.1.running_mean"], moved)
