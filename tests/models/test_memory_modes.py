import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import is_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from manystream.functional import integrate, remat
from manystream.memory import peak_bytes
from manystream.models import StreamResNet
from tests.builders import CHANNELS, INTEGRATED_FAMILIES, mask_of, presences, random_images

MODES = ("balanced", "lean", "min")
FAMILIES = (*INTEGRATED_FAMILIES, "late_fusion", "early_fusion")


def network(family="li_net3", block="basic", num_streams=2, **layout):
    torch.manual_seed(0)
    return StreamResNet(
        **{
            "family": family,
            "block": block,
            "layers": (2, 1, 2, 1),
            "widths": (3, 4, 5, 6),
            "in_channels": CHANNELS[:num_streams],
            "num_classes": 4,
            **layout,
        }
    )


def step(net, images, mask, dtype=None):
    """One training step; returns its loss."""
    target = torch.arange(len(mask)) % 4
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        loss = F.cross_entropy(net(images, present=mask).float(), target)
    loss.backward()
    return loss.detach()


def outcome(net, images, mask, mode, dtype=None, steps=1):
    """Losses, gradients and buffers after training steps in a mode."""
    net = copy.deepcopy(net)
    net.memory = mode
    torch.manual_seed(1)
    losses = torch.stack([step(net, images, mask, dtype) for _ in range(steps)])
    gradients = {name: p.grad for name, p in net.named_parameters() if p.requires_grad}
    return {"losses": losses, **gradients, **dict(net.named_buffers())}


def assert_bit_equal(ours, expected):
    different = [name for name in expected if not torch.equal(ours[name], expected[name])]
    assert different == []


@settings(max_examples=12)
@given(
    presences(max_streams=3, max_samples=5),
    st.sampled_from(FAMILIES),
    st.sampled_from(("basic", "bottleneck")),
)
@example("11 10 01 11", "li_net3", "basic")
@example("10 10", "li_net3_soma", "bottleneck")
@example("110 011 101 111", "direct_mixing_conv", "basic")
def test_every_mode_gives_the_same_bits(words, family, block):
    mask = mask_of(words)
    net = network(family, block, mask.shape[1])
    images = random_images(mask, dtype=torch.float32)
    expected = outcome(net, images, mask, "fast")
    for mode in MODES:
        assert_bit_equal(outcome(net, images, mask, mode), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", INTEGRATED_FAMILIES)
def test_the_same_bits_under_autocast(mode, family):
    mask = mask_of("11 10 01 11")
    net, images = network(family), random_images(mask, dtype=torch.float32)
    expected = outcome(net, images, mask, "fast", torch.bfloat16)
    assert_bit_equal(outcome(net, images, mask, mode, torch.bfloat16), expected)


@pytest.mark.parametrize("mode", MODES)
def test_the_same_bits_when_gradients_accumulate_and_features_drop(mode):
    mask = mask_of("11 10 01 11")
    net, images = network(dropout=0.5), random_images(mask, dtype=torch.float32)
    expected = outcome(net, images, mask, "fast", steps=3)
    assert_bit_equal(outcome(net, images, mask, mode, steps=3), expected)


@pytest.mark.parametrize("mode", MODES)
def test_two_forward_passes_before_one_backward_pass(mode):
    mask = mask_of("11 10 01 11")
    images = random_images(mask, dtype=torch.float32)
    gradients = []
    for each in ("fast", mode):
        net = network()
        net.memory = each
        sum(net(images, present=p).sum() for p in (mask, mask.flip(0))).backward()
        gradients.append({n: p.grad for n, p in net.named_parameters() if p.requires_grad})
    assert_bit_equal(gradients[1], gradients[0])


@pytest.mark.parametrize("mode", MODES)
def test_statistics_move_once(mode):
    mask = mask_of("11 10 01 11")
    net = network()
    net.memory = mode
    step(net, random_images(mask, dtype=torch.float32), mask)
    counters = {n: b.item() for n, b in net.named_buffers() if n.endswith("num_batches_tracked")}
    assert set(counters.values()) == {1}


@pytest.mark.parametrize("mode", ["fast", *MODES])
def test_nothing_outlives_the_step(mode):
    mask = mask_of("11 10 01 11")
    net, images = network(), random_images(mask, dtype=torch.float32)
    net.memory = mode
    step(net, images, mask)  # gradients exist from here on
    with CreatedStorages() as created:
        loss = step(net, images, mask)
    assert len(created.references) > 100
    left = [storage.nbytes() for r in created.references if (storage := r()) is not None]
    assert left == [loss.untyped_storage().nbytes()]


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("mode", ["fast", *MODES])
def test_a_forward_pass_that_is_given_up_leaves_nothing(mode, block):
    mask = mask_of("11 10 01 11")
    net, images = network(block=block), random_images(mask, dtype=torch.float32)
    net.memory = mode
    with CreatedStorages() as created:
        net(images, present=mask)
    gc.collect()
    assert len(created.references) > 50
    assert [r().nbytes() for r in created.references if r() is not None] == []


@pytest.mark.parametrize(
    "failing", [(remat._Recipe, "build"), (integrate._How, "previous_gradients")]
)
@pytest.mark.parametrize("mode", MODES)
def test_a_backward_pass_that_fails_leaves_nothing(mode, failing, monkeypatch):
    mask = mask_of("11 10 01 11")
    net, images = network(), random_images(mask, dtype=torch.float32)
    net.memory = mode
    owner, name = failing
    works, calls = getattr(owner, name), []

    def fails_in_time(*arguments):
        calls.append(None)
        if len(calls) == 4:
            raise torch.OutOfMemoryError
        return works(*arguments)

    monkeypatch.setattr(owner, name, fails_in_time)
    with CreatedStorages() as created, pytest.raises(torch.OutOfMemoryError):
        step(net, images, mask)
    net.zero_grad()
    # What autograd had still to do stays in its queue until this thread's next pass.
    torch.ones(1, requires_grad=True).sum().backward()
    gc.collect()
    assert [r().nbytes() for r in created.references if r() is not None] == []


class CreatedStorages(TorchDispatchMode):
    """Remembers, without holding it, every storage that an operation returns."""

    def __init__(self):
        super().__init__()
        self.references = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {weakref.ref(t.untyped_storage()) for t in tree_leaves(args) if is_tensor(t)}
        result = func(*args, **(kwargs or {}))
        made = {weakref.ref(t.untyped_storage()) for t in tree_leaves(result) if is_tensor(t)}
        self.references |= made - known
        return result


@pytest.mark.parametrize(
    ("block", "layers"), [("basic", (2, 2, 2, 2)), ("bottleneck", (3, 4, 6, 3))]
)
def test_each_mode_keeps_less_than_the_one_before(block, layers):
    mask = mask_of("11 10 01 11")
    net = network(block=block, layers=layers, widths=(8, 16, 32, 64))
    images = random_images(mask, size=(96, 96), dtype=torch.float32)
    step(net, images, mask)
    peaks = []
    for mode in ("fast", *MODES):
        net.memory = mode
        peaks.append(peak_bytes(lambda: step(net, images, mask)))
    fast, balanced, lean, least = peaks
    assert fast > balanced > lean
    assert lean < 0.7 * fast, "lean saves a third at the least"
    assert least < (lean if block == "bottleneck" else balanced), "basic blocks hold little else"


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_and_inference_are_the_same(mode):
    mask = mask_of("11 10 01 11")
    net, images = network().eval(), random_images(mask, dtype=torch.float32)
    expected = net(images, present=mask)
    net.memory = mode
    assert torch.equal(net(images, present=mask), expected)
    with torch.no_grad():
        assert torch.equal(net(images, present=mask), expected)


@pytest.mark.parametrize("mode", ["fast", *MODES])
def test_differentiating_twice_is_refused(mode):
    mask = mask_of("11 10")
    net, images = network(), random_images(mask, dtype=torch.float32)
    net.memory = mode
    weight = net.conv1.streams[0].weight
    (grad,) = torch.autograd.grad(net(images, present=mask).sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()


@pytest.mark.parametrize("mode", MODES)
def test_a_short_run_ends_with_the_same_weights(mode):
    mask = mask_of("11 10 01 11 11")
    images = random_images(mask, dtype=torch.float32)
    ends = []
    for each in ("fast", mode):
        net = network()
        net.memory = each
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            step(net, images, mask)
            optimizer.step()
        ends.append(net.state_dict())
    assert_bit_equal(ends[1], ends[0])


def test_an_unknown_mode_is_refused():
    net = network()
    with pytest.raises(ValueError, match=r"'tiny'.*fast, balanced, lean, min"):
        net.memory = "tiny"
    assert net.memory == "fast"
    with pytest.raises(ValueError, match="'tiny'"):
        network(memory="tiny")
