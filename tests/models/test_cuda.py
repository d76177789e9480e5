"""On a GPU: the same numbers as on the CPU, and no step in which the host waits for the device."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.builders import (
    CHANNELS,
    INTEGRATED_FAMILIES,
    mask_of,
    random_images,
    small_resnet,
)

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
]

WORDS = {
    "all present": "11 11 11 11",
    "runs, sorted": "01 11 10 11",
    "an index": "110 101 011 110",
    "a stream without rows": "10 10 10",
    "one row": "10 11 10",
}
by_pattern = pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())


@pytest.fixture
def reset_sync_mode() -> Iterator[None]:
    """Waiting is an error only within a test; building and comparing may wait."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@by_pattern
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.usefixtures("reset_sync_mode")
def test_a_training_step_never_waits_for_the_device(words: str, autocast: bool) -> None:
    mask = mask_of(words)
    model = small_resnet(mask.shape[1], dtype=torch.float32).cuda()
    images = [x.cuda() for x in random_images(mask, dtype=torch.float32)]
    target = torch.zeros(len(mask), dtype=torch.int64, device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(images, present=mask), target)
        loss.backward()
        optimizer.step()
        return loss

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    loss = step()
    torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


@pytest.mark.usefixtures("reset_sync_mode")
def test_the_debug_mode_does_see_a_wait() -> None:
    on_device = torch.ones(3, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchronizing"):
        on_device.any().item()


@by_pattern
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("training", [True, False])
def test_agrees_with_the_cpu(words: str, block: str, training: bool) -> None:
    mask = mask_of(words)
    results = []
    for device in ("cpu", "cuda"):
        model = small_resnet(mask.shape[1], block).train(training).to(device)
        images = [x.to(device).requires_grad_() for x in random_images(mask)]
        logits = model(images, present=mask)
        logits.square().sum().backward()
        named = {"logits": logits, **dict(model.named_buffers())}
        named |= {f"gradient of input {m}": x.grad for m, x in enumerate(images)}
        named |= {f"gradient of {n}": p.grad for n, p in model.named_parameters()}
        results.append({n: x.detach().cpu() for n, x in named.items() if x is not None})
    assert results[0].keys() == results[1].keys()
    for name, x in results[0].items():
        scale = x.double().abs().max().item() if x.numel() else 0.0
        torch.testing.assert_close(
            results[1][name],
            x,
            rtol=0,
            atol=1e-9 * scale + 1e-12,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", INTEGRATED_FAMILIES)
def test_every_mode_steps_alike_under_autocast(family: str, dtype: torch.dtype) -> None:
    mask = mask_of("11 10 01 11")
    images = [x.cuda() for x in random_images(mask, CHANNELS[:2], (64, 64), torch.float32)]
    base = small_resnet(2, family=family, dtype=torch.float32).cuda()
    weights = []
    for mode in ("fast", "balanced", "lean", "min"):
        model = copy.deepcopy(base)
        model.memory = mode
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cuda", init_scale=256.0)
        with torch.autocast("cuda", dtype):
            loss = model(images, present=mask).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        assert loss.isfinite()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-2, atol=1e-4)
