"""A step from CUDA graphs is the eager step; without a GPU it is that step itself."""

import copy
import gc
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from manystream.graphs import GraphedStep
from manystream.presence import Views
from manystream.tasks import StepLoss, forward_and_loss
from tests.builders import mask_of, random_images, small_resnet

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
PATTERNS = ["11 11 11 11 11", "01 11 10 11 11", "10 10 11 11 10", "110 101 011 111"]


@pytest.fixture(autouse=True)
def _exact_products():
    """Products of TF32 would turn last bits that differ into thousandths."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def network_of(words, device="cuda", memory="fast", seed=0, **layout):
    torch.manual_seed(seed)
    mask = mask_of(words)
    network = small_resnet(mask.shape[1], dtype=torch.float32, **layout).to(device)
    network.memory = memory
    return network


def batch_of(network, words, device="cuda", seed=0):
    mask = mask_of(words)
    torch.manual_seed(seed)
    channels = list(network.in_channels.values())
    images = [x.to(device) for x in random_images(mask, channels, (64, 64), torch.float32)]
    target = torch.arange(len(mask), device=device) % network.num_classes
    return replace(network.to_batch(images, mask), target=target)


def outcome(network, loss, logits):
    """Everything that a step leaves behind."""
    grads = {f"grad {n}": p.grad for n, p in network.named_parameters() if p.grad is not None}
    buffers = {n: b.clone() for n, b in network.named_buffers()}
    return {"loss": loss.detach(), "logits": logits.detach(), **grads, **buffers}


def assert_same(ours, theirs, tolerance=1e-3):
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        scale = x.double().abs().max().item()
        error = (ours[name].double() - x.double()).abs().max().item()
        assert error <= tolerance * scale + 1e-7, (name, error, scale)


def test_on_the_cpu_it_is_the_plain_step():
    network = network_of(PATTERNS[1], "cpu")
    batch = batch_of(network, PATTERNS[1], "cpu")
    twin = copy.deepcopy(network)
    step = GraphedStep(network, F.cross_entropy)
    for _ in range(3):
        loss, logits = step(batch)
        loss.backward()
        expected = twin(batch)
        F.cross_entropy(expected, batch.target).backward()
        assert torch.equal(logits, expected)
    assert step.num_graphs == 0
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)


def test_a_batch_without_targets_is_refused():
    network = network_of(PATTERNS[0], "cpu")
    batch = replace(batch_of(network, PATTERNS[0], "cpu"), target=None)
    with pytest.raises(ValueError, match="no target"):
        GraphedStep(network, F.cross_entropy)(batch)


def test_at_least_one_graph():
    with pytest.raises(ValueError, match="max_graphs is 0"):
        GraphedStep(torch.nn.Identity(), F.cross_entropy, max_graphs=0)


def test_a_wrapper_whose_averaging_no_replay_would_do_is_refused():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match=r"DistributedDataParallel.*average_gradients"):
            GraphedStep(DistributedDataParallel(torch.nn.Linear(1, 1)), F.cross_entropy)
    finally:
        dist.destroy_process_group()


@needs_gpu
@pytest.mark.parametrize("memory", ["fast", "balanced", "lean", "min"])
@pytest.mark.parametrize("words", PATTERNS)
def test_replayed_steps_are_the_eager_ones(words, memory):
    network, twin = network_of(words, memory=memory), network_of(words)
    step = GraphedStep(network, F.cross_entropy)
    for seed in range(4):
        batch = batch_of(network, words, seed=seed)
        for net in (network, twin):
            net.zero_grad(set_to_none=True)
        loss, logits = step(batch)
        loss.backward()
        expected = twin(batch)
        expected_loss = F.cross_entropy(expected, batch.target)
        expected_loss.backward()
        assert_same(outcome(network, loss, logits), outcome(twin, expected_loss, expected))
    assert step.num_graphs == 1


@needs_gpu
@pytest.mark.parametrize("memory", ["fast", "balanced", "lean", "min"])
@pytest.mark.parametrize("words", PATTERNS)
@pytest.mark.parametrize("per_sample", [None, 2])
def test_replayed_steps_with_subsets_are_the_eager_ones(words, memory, per_sample):
    """Views, their targets and weights come anew with every batch of a shape."""
    network, twin = (network_of(words, memory=m, subset_norms=True) for m in (memory, "fast"))
    loss_of = StepLoss(partial(F.cross_entropy, reduction="none"))
    step = GraphedStep(network, loss_of)
    for seed in range(4):
        batch = batch_of(network, words, seed=seed)
        views = Views.with_subsets(batch.presence, per_sample, {1: 2.0})
        batch = replace(batch, views=views.to("cuda"))
        for net in (network, twin):
            net.zero_grad(set_to_none=True)
        loss, logits = step(batch)
        loss.backward()
        expected_loss, expected = forward_and_loss(twin, loss_of, batch)
        expected_loss.backward()
        assert_same(outcome(network, loss, logits), outcome(twin, expected_loss, expected))
    assert step.num_graphs == 1


@needs_gpu
def test_gradients_accumulate_and_scale():
    network, twin = network_of(PATTERNS[1]), network_of(PATTERNS[1])
    step = GraphedStep(network, F.cross_entropy)
    for seed, scale in enumerate((0.5, 0.25, 2.0, 1.0)):
        batch = batch_of(network, PATTERNS[1], seed=seed)
        loss, logits = step(batch)
        (scale * loss).backward()
        expected = twin(batch)
        expected_loss = F.cross_entropy(expected, batch.target)
        (scale * expected_loss).backward()
        assert_same(outcome(network, loss, logits), outcome(twin, expected_loss, expected))


@needs_gpu
def test_shapes_beyond_the_bound_run_eagerly_and_all_take_turns():
    network, twin = network_of(PATTERNS[0]), network_of(PATTERNS[0])
    step = GraphedStep(network, F.cross_entropy, max_graphs=2)
    for seed in range(4):
        for words in PATTERNS[:3]:
            batch = batch_of(network, words, seed=seed)
            for net in (network, twin):
                net.zero_grad(set_to_none=True)
            loss, logits = step(batch)
            loss.backward()
            expected = twin(batch)
            expected_loss = F.cross_entropy(expected, batch.target)
            expected_loss.backward()
            assert_same(outcome(network, loss, logits), outcome(twin, expected_loss, expected))
    assert step.num_graphs == 2


@needs_gpu
def test_a_second_forward_before_the_backward_runs_eagerly():
    network = network_of(PATTERNS[1])
    step = GraphedStep(network, F.cross_entropy)
    batch = batch_of(network, PATTERNS[1])
    for _ in range(2):
        step(batch)[0].backward()
    network.zero_grad(set_to_none=True)
    first, _ = step(batch)
    second, _ = step(batch)
    (first + second).backward()
    both = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad(set_to_none=True)
    step(batch)[0].backward()
    once = [p.grad for p in network.parameters() if p.grad is not None]
    for twice, one in zip(both, once, strict=True):
        torch.testing.assert_close(twice, 2 * one, rtol=1e-2, atol=1e-5)


@needs_gpu
def test_a_loss_has_one_backward():
    network = network_of(PATTERNS[1])
    step = GraphedStep(network, F.cross_entropy)
    batch = batch_of(network, PATTERNS[1])
    for _ in range(2):
        step(batch)[0].backward()
    loss, _ = step(batch)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()


@needs_gpu
def test_a_frozen_parameter_begins_new_graphs():
    network = network_of(PATTERNS[1])
    step = GraphedStep(network, F.cross_entropy)
    batch = batch_of(network, PATTERNS[1])
    for _ in range(3):
        step(batch)[0].backward()
    assert step.num_graphs == 1
    network.fc.weight.requires_grad_(False)
    network.zero_grad(set_to_none=True)
    for _ in range(3):
        step(batch)[0].backward()
    assert step.num_graphs == 1
    assert network.fc.weight.grad is None
    assert network.fc.bias.grad is not None


MORE_THAN_THERE_IS = 2**50


def fail_if_capturing():
    """Run out of memory as a kernel's work space does, but only in a capture."""
    if torch.cuda.is_current_stream_capturing():
        torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8, device="cuda")


@contextmanager
def no_memory_for_a_stream_forward(network):
    """In a stream's lane, when other lanes have work."""
    conv = network.layer2[0].conv1.streams[1]
    handle = conv.register_forward_hook(lambda *_: fail_if_capturing())
    yield "out of memory"
    handle.remove()


@contextmanager
def no_memory_for_the_head_forward(network):
    """After the lanes have come back."""
    handle = network.fc.register_forward_pre_hook(lambda *_: fail_if_capturing())
    yield "out of memory"
    handle.remove()


@contextmanager
def no_memory_for_a_stream_backward(network):
    """When the forward pass has been captured, and lanes are under way that will not come back."""

    def when_it_comes_back(module, inputs, output):
        output.register_hook(lambda _: fail_if_capturing())

    handle = network.layer2[0].conv1.streams[1].register_forward_hook(when_it_comes_back)
    yield "out of memory"
    handle.remove()


@contextmanager
def a_look_at_the_host(network):
    """Which breaks the capture itself."""

    def look(module, inputs):
        inputs[0].sum().item()

    handle = network.fc.register_forward_pre_hook(look)
    yield "captur|not permitted"
    handle.remove()


BROKEN = [
    no_memory_for_a_stream_forward,
    no_memory_for_the_head_forward,
    no_memory_for_a_stream_backward,
    a_look_at_the_host,
]


def private_pools():
    """Memory pools of graphs that the allocator still has."""
    gc.collect()
    torch.cuda.empty_cache()
    segments = torch.cuda.memory_snapshot()
    return {tuple(s["segment_pool_id"]) for s in segments} - {(0, 0)}


class Twins:
    """A network that is stepped from graphs and its eager twin, which must stay alike.

    Both draw the same random numbers; there is dropout before the head.
    """

    def __init__(self):
        self.network, self.twin = (network_of(PATTERNS[0], dropout=0.5) for _ in range(2))
        self.step = GraphedStep(self.network, F.cross_entropy)
        self.count = 0

    def __call__(self, words):
        self.count += 1
        batch = batch_of(self.network, words, seed=self.count)
        torch.cuda.manual_seed(self.count)
        self.network.zero_grad(set_to_none=True)
        loss, logits = self.step(batch)
        loss.backward()
        ours, drawn = torch.rand(3, device="cuda"), torch.cuda.get_rng_state()
        torch.cuda.manual_seed(self.count)
        self.twin.zero_grad(set_to_none=True)
        expected = self.twin(batch)
        expected_loss = F.cross_entropy(expected, batch.target)
        expected_loss.backward()
        assert_same(
            outcome(self.network, loss, logits), outcome(self.twin, expected_loss, expected)
        )
        assert torch.equal(ours, torch.rand(3, device="cuda"))
        assert torch.equal(drawn, torch.cuda.get_rng_state())


@needs_gpu
@pytest.mark.parametrize("broken", BROKEN)
def test_a_failed_capture_costs_graphs_only_for_its_shape(broken):
    twins = Twins()
    twins(PATTERNS[0])
    twins(PATTERNS[0])
    assert twins.step.num_graphs == 1
    with broken(twins.network) as reason:
        twins(PATTERNS[1])
        with pytest.warns(UserWarning, match=f"no CUDA graph for this shape.*({reason})"):
            twins(PATTERNS[1])
        twins(PATTERNS[1])  # without a word: it is not tried again
    assert twins.step.num_graphs == 1
    for words in 3 * PATTERNS[:3]:
        twins(words)
    assert twins.step.num_graphs == 2


@needs_gpu
@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_nothing_of_a_failed_capture_is_kept(broken, memory):
    network = network_of(PATTERNS[1], memory=memory)
    step, batch = GraphedStep(network, F.cross_entropy), batch_of(network, PATTERNS[1])
    before = private_pools()
    with broken(network) as reason:
        step(batch)[0].backward()
        with pytest.warns(UserWarning, match=reason):
            step(batch)[0].backward()
    assert private_pools() == before
    reserved = torch.cuda.memory_reserved()
    kept = torch.empty(64 * 2**20, dtype=torch.uint8, device="cuda")
    assert torch.cuda.memory_reserved() > reserved
    del kept
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == reserved


@needs_gpu
def test_failed_captures_count_among_those_that_are_tried():
    twins = Twins()
    twins.step.max_graphs = 1
    with no_memory_for_the_head_forward(twins.network):
        twins(PATTERNS[0])
        with pytest.warns(UserWarning, match="no CUDA graph"):
            twins(PATTERNS[0])
    for words in 3 * PATTERNS[1:2]:
        twins(words)
    assert twins.step.num_graphs == 0


@needs_gpu
def test_an_error_of_the_loss_in_a_capture_is_raised_and_leaves_graphs_alone():
    def loss(logits, target):
        if fails and torch.cuda.is_current_stream_capturing():
            raise KeyError("no such class")
        return F.cross_entropy(logits, target)

    twins, fails = Twins(), False
    twins.step.loss = loss
    for words in (PATTERNS[0], PATTERNS[0], PATTERNS[1]):
        twins(words)
    fails = True
    with pytest.raises(KeyError, match="no such class"):
        twins(PATTERNS[1])
    fails = False
    for words in 2 * PATTERNS[:2]:
        twins(words)
    assert twins.step.num_graphs == 2


@needs_gpu
def test_a_training_run_ends_alike_with_and_without_graphs():
    losses = []
    for graphed in (True, False):
        network = network_of(PATTERNS[1])
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        step = GraphedStep(network, F.cross_entropy)
        for seed in range(12):
            batch = batch_of(network, PATTERNS[seed % 3], seed=seed)
            if graphed:
                loss, _ = step(batch)
            else:
                loss = F.cross_entropy(network(batch), batch.target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


@needs_gpu
@pytest.mark.filterwarnings("ignore")
def test_fit_with_graphs_ends_like_fit_without():
    pytest.importorskip("lightning")
    from manystream.tasks import Classification
    from manystream.training.fit import fit
    from manystream.training.options import FitOptions

    ends = []
    for graphs in ("on", "off"):
        network = network_of(PATTERNS[1])
        mask = mask_of(PATTERNS[1])
        loader = [
            {
                **dict(
                    zip(
                        network.in_channels,
                        random_images(mask, size=(64, 64), dtype=torch.float32),
                        strict=False,
                    )
                ),
                "present": mask,
                "target": torch.arange(len(mask)) % network.num_classes,
            }
        ] * 6
        options = FitOptions(epochs=2, cuda_graphs=graphs, progress=False, accelerator="gpu")
        task = Classification(network.num_classes)
        ends.append(fit(network, task, loader, options=options)["train_loss"][-1])
    assert ends[0] == pytest.approx(ends[1], rel=0.02)
