"""The baselines compute what compact execution computes."""

import pytest
import torch

from harness.baselines import BASELINES, MaskedNet
from manystream.models import StreamResNet
from tests.builders import INTEGRATED_FAMILIES, mask_of, random_images, small_resnet

PATTERNS = ["11 11 11", "10 11 01", "10 10 10", "110 101 011 111"]
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def step(network: torch.nn.Module, model: StreamResNet, *inputs: object) -> dict[str, torch.Tensor]:
    """Logits, gradients and running statistics of one training step; a gradient of None is zero."""
    model.zero_grad(set_to_none=True)
    logits = network(*inputs)
    direction = torch.arange(1.0, logits.numel() + 1, dtype=logits.dtype).sin().view_as(logits)
    (logits * direction).sum().backward()
    gradients = {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for n, p in model.named_parameters()
        if p.requires_grad
    }
    return {"logits": logits.detach(), **gradients}


def statistics(model: StreamResNet) -> dict[str, torch.Tensor]:
    return {n: b.clone() for n, b in model.named_buffers()}


@pytest.mark.parametrize("words", PATTERNS)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("family", INTEGRATED_FAMILIES)
def test_masked_execution_equals_compact(
    family: str, block: str, in_place: bool, words: str
) -> None:
    mask = mask_of(words)
    images = random_images(mask)
    model = small_resnet(mask.shape[1], block, family=family)
    same = small_resnet(mask.shape[1], block, family=family)
    expected = step(model, model, images, mask)
    actual = step(MaskedNet(same, in_place), same, images, mask)
    torch.testing.assert_close(actual, expected, **CLOSE)
    moved = {n: b for n, b in statistics(model).items() if "num_batches" not in n}
    torch.testing.assert_close(
        {n: b for n, b in statistics(same).items() if n in moved}, moved, **CLOSE
    )


@pytest.mark.parametrize("name", [n for n in BASELINES if "compile" not in n])
def test_every_baseline_equals_compact_where_all_is_present(name: str) -> None:
    mask = mask_of("11 11 11")
    images = random_images(mask)
    model = small_resnet(layers=(2, 1, 1, 1))
    expected = step(model, model, images, mask)
    actual = step(BASELINES[name](model), model, images, mask)
    torch.testing.assert_close(actual, expected, **CLOSE)


def test_checkpointing_moves_running_statistics_twice() -> None:
    mask = mask_of("11 10 01")
    images = random_images(mask)
    model = small_resnet()
    step(BASELINES["masked in-place, checkpointed"](model), model, images, mask)
    assert model.layer1[0].bn1.integrated.num_batches_tracked == 2
    assert model.bn1.integrated.num_batches_tracked == 1


def test_a_network_without_integrated_pathway_is_refused() -> None:
    with pytest.raises(ValueError, match="no integrated pathway"):
        MaskedNet(small_resnet(family="late_fusion"), in_place=True)
