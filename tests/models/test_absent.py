"""An absent image is never read, leaves no gradient, and costs neither memory nor arithmetic."""

import math
import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from manystream.models import StreamResNet
from tests.builders import mask_of, presences, random_images, small_resnet, with_absent

SIZE = (37, 43)
STRIDES = {"conv1": 2, "layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}


def step(model: StreamResNet, images: list[Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Everything a training step leaves behind."""
    images = [x.requires_grad_() for x in images]
    logits = model(images, present=mask)
    logits.square().sum().backward()
    left = {f"input {m}": x.grad for m, x in enumerate(images)}
    left |= {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {"logits": logits.detach(), **left, **dict(model.named_buffers())}


@settings(max_examples=15)
@given(words=presences(min_streams=2), dtype=st.sampled_from([torch.float32, torch.float64]))
@example("11 10 01 11", torch.float32)
@example("110 101 011 001", torch.float32)
@example("01 01 01", torch.float32)
def test_nan_and_zeros_in_absent_images_give_the_same_bits(words: str, dtype: torch.dtype) -> None:
    mask = mask_of(words)
    images = random_images(mask, size=SIZE, dtype=dtype)
    for training in (True, False):
        results = []
        for value in (math.nan, 0.0):
            model = small_resnet(mask.shape[1], dtype=dtype).train(training)
            results.append(step(model, with_absent(images, mask, value), mask))
        for name, tensor in results[0].items():
            assert torch.equal(tensor, results[1][name]), name


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("words", ["11 11", "10 10 10", "01", "110 011 101", "100 010 100"])
def test_every_trained_parameter_has_a_gradient(block: str, words: str) -> None:
    mask = mask_of(words)
    model = small_resnet(mask.shape[1], block)
    step(model, random_images(mask, size=SIZE), mask)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        stream = re.search(r"\.(?:streams|stream_weights)\.(\d)", name)
        empty = stream is not None and not mask[:, int(stream[1])].any()
        assert bool(parameter.grad.any()) is not empty, name


@pytest.mark.parametrize(("block", "last_norm"), [("basic", "bn2"), ("bottleneck", "bn3")])
def test_only_the_last_streams_norms_are_frozen_and_their_statistics_move(
    block: str, last_norm: str
) -> None:
    model = small_resnet(2, block, (1, 1, 1, 2))
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    norm = f"layer4.1.{last_norm}.streams"
    assert frozen == {f"{norm}.{m}.{p}" for m in (0, 1) for p in ("weight", "bias")}
    before = {n: b.clone() for n, b in model.named_buffers()}
    mask = mask_of("10 10 10")
    model(random_images(mask, size=SIZE), present=mask)
    moved = {n for n, b in model.named_buffers() if not torch.equal(b, before[n])}
    assert moved == {n for n in before if ".streams.1." not in n}


def test_one_sample_moves_no_statistics_of_single_values() -> None:
    model = small_resnet(2)
    before = {n: b.clone() for n, b in model.named_buffers()}
    mask = mask_of("11")
    model(random_images(mask, size=(32, 32)), present=mask)
    moved = {n for n, b in model.named_buffers() if not torch.equal(b, before[n])}
    assert moved == {n for n in before if not n.startswith("layer4")}


def kept_bytes(model: StreamResNet, words: str) -> int:
    """Bytes that a training forward keeps for backward, parameters left out."""
    mask = mask_of(words)
    images = random_images(mask, size=SIZE, dtype=torch.float32)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(images, present=mask)
    assert logits.requires_grad
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


def test_memory_kept_for_backward_falls_with_each_absent_image() -> None:
    model = small_resnet(2, dtype=torch.float32)
    kept = [kept_bytes(model, "01 " * n + "11 " * (10 - 2 * n) + "10 " * n) for n in range(5)]
    assert kept[1] < kept[0]
    # From the second on: the first also brings the index that restores the order.
    falls = {before - after for before, after in pairwise(kept[1:])}
    assert len(falls) == 1
    # With all ten absent from either stream, little more than the integrated third is left.
    assert 10 * falls.pop() > 0.5 * kept[0]


def flops(model: StreamResNet, words: str) -> int:
    """Multiply-adds, times two, of a forward, the in-place matrix products included."""
    mask = mask_of(words)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm_flops})
    with counter, torch.no_grad():
        model(random_images(mask, size=SIZE, dtype=torch.float32), present=mask)
    return counter.get_total_flops()


def _addmm_flops(out: Any, a: Any, b: Any, **_: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def flops_per_row(model: StreamResNet, names: str) -> int:
    """By arithmetic: each weight of a basic block's convolutions is used once per output pixel."""
    total = 0
    for name, parameter in model.named_parameters():
        if re.search(names, name) and parameter.dim() == 4:
            stride = STRIDES[name.split(".")[0]]
            total += 2 * parameter.numel() * math.prod(-(-side // stride) for side in SIZE)
    return total


@pytest.mark.parametrize(
    "words", ["11 11 11 11 11", "01 11 11 10 10", "10 10 10", "110 101 011 010", "100 100"]
)
def test_arithmetic_is_that_of_the_present_images(words: str) -> None:
    mask = mask_of(words)
    model = small_resnet(mask.shape[1], dtype=torch.float32)
    expected = len(mask) * flops_per_row(model, "integrated_weight")
    expected += len(mask) * 2 * model.fc.weight.numel()
    for m in range(mask.shape[1]):
        rows = int(mask[:, m].sum())
        expected += rows * flops_per_row(model, rf"\.(streams|stream_weights)\.{m}")
    assert flops(model, words) == expected
