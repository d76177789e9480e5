"""Whichever way layers are called, and whoever looks, a memory mode keeps what it says."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from manystream.functional import remat
from manystream.layers import BasicBlock, Bottleneck, StreamConv2d, StreamNormAct2d
from manystream.memory import kept_bytes
from manystream.models import StreamNetwork, apply_memory_mode
from tests.builders import compact_batch, mask_of, random_images
from tests.models.test_memory_modes import MODES, assert_bit_equal, network

ALL = ("fast", *MODES)
MASK = mask_of("11 10 01 11")


class Looker(TorchDispatchMode):
    """Looks at the storage of everything that comes and goes, and holds what ``look`` makes."""

    def __init__(self, look):
        super().__init__()
        self.look, self.held = look, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if torch.is_tensor(t)]
        self.held += [self.look(t.untyped_storage()) for t in tensors]
        return result


class LiveStorages(Looker):
    """The bytes that operations have made and that are still alive."""

    def __init__(self):
        super().__init__(lambda storage: (StorageWeakRef(storage), storage.nbytes()))

    def bytes(self, exclude):
        gc.collect()
        lives = {StorageWeakRef(t.untyped_storage()) for t in exclude}
        sizes = {ref: size for ref, size in self.held if ref not in lives and not ref.expired()}
        return sum(sizes.values())


def lasting(net, batch):
    return [*net.parameters(), *net.buffers(), *batch.streams]


LOOKS = {
    "at the object": weakref.ref,
    "at its address": lambda storage: storage.data_ptr(),
    "at what it is in C++": StorageWeakRef,
}


@pytest.mark.parametrize("look", LOOKS)
def test_what_is_kept_does_not_depend_on_who_looks(look):
    net = network(layers=(1, 1, 1, 1), widths=(8, 8, 8, 8))
    batch = net.to_batch(random_images(MASK, dtype=torch.float32), MASK)
    for mode in ALL:
        net.memory = mode
        alone = kept_bytes(lambda: net(batch).sum(), lasting(net, batch))
        with Looker(LOOKS[look]):
            seen = kept_bytes(lambda: net(batch).sum(), lasting(net, batch))
        assert seen == alone


def test_fake_tensors_are_kept_as_real_ones_are():
    net = network(layers=(1, 1, 1, 1), widths=(8, 8, 8, 8))
    batch = net.to_batch(random_images(MASK, dtype=torch.float32))
    real = []
    for mode in ALL:
        net.memory = mode
        real.append(kept_bytes(lambda: net(batch).sum(), lasting(net, batch)))
    fake_mode = FakeTensorMode()
    for module in net.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = fake_mode.from_tensor(tensor)
    batch = batch.map(fake_mode.from_tensor)
    for mode, expected in zip(ALL, real, strict=True):
        net.memory = mode
        kept = {}

        def save(tensor, kept=kept):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage  # fake storages have no address
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
        with fake_mode:
            with hooks, remat.observing(save):
                loss = net(batch).sum()
            lives = lasting(net, batch)
            loss.backward()
        for tensor in lives:
            kept.pop(tensor.untyped_storage()._cdata, None)
        assert sum(storage.nbytes() for storage in kept.values()) == expected


def features_of(net, batch):
    return sum(x.sum() for x in net.forward_features(batch))


def live_bytes(forward, exclude):
    """What is alive after a call beyond what was before; its result is, too."""
    counter = LiveStorages()
    with counter:
        result = forward()
    alive = counter.bytes(exclude)
    del result
    return alive


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_features_keep_what_the_network_keeps(block):
    net = network(block=block, layers=(2, 1, 1, 1), widths=(8, 8, 8, 8))
    batch = net.to_batch(random_images(MASK, dtype=torch.float32), MASK)
    lives = lasting(net, batch)
    kept, alive = [], []
    for mode in ALL:
        net.memory = mode
        kept.append(kept_bytes(lambda: features_of(net, batch), lives))
        assert kept[-1] <= kept_bytes(lambda: net(batch).sum(), lives)
        alive.append(live_bytes(lambda: features_of(net, batch), lives))
    assert kept == sorted(set(kept), reverse=True)
    assert [alive[0] - a for a in alive] == [kept[0] - k for k in kept]


def test_features_that_live_on_hold_nothing_after_the_backward_pass():
    net = network(layers=(2, 2, 2, 1), widths=(8, 8, 8, 8))
    batch = net.to_batch(random_images(MASK, dtype=torch.float32), MASK)
    features_of(net, batch).backward()
    lives = [*lasting(net, batch), *(p.grad for p in net.parameters() if p.grad is not None)]

    def trained():
        features = net.forward_features(batch)
        sum(x.sum() for x in features).backward()
        return features

    alive = []
    for mode in ALL:
        net.memory = mode
        alive.append(live_bytes(trained, lives))
    assert set(alive) == {alive[0]}


class Own(nn.Module):
    """A network as a user would make one, with an operation between the layers."""

    def __init__(self):
        super().__init__()
        self.conv = StreamConv2d([3, 1], 8, 3, padding=1)
        self.norm = StreamNormAct2d(8, 2)
        self.blocks = nn.Sequential(
            BasicBlock(2, 8, 8), Bottleneck(2, 8, 4, stride=2), Bottleneck(2, 16, 4)
        )
        self.head = nn.Linear(16, 4)

    def forward(self, batch):
        batch = self.norm(self.conv(batch)).map(lambda x: nn.functional.max_pool2d(x, 2))
        return self.head(self.blocks(batch).integrated.mean((2, 3)))


class OwnNetwork(StreamNetwork):
    def __init__(self):
        super().__init__([3, 1], 4)
        self.own = Own()

    def forward_batch(self, batch):
        return self.own(batch)


@pytest.mark.parametrize("call", ["module", "network", "its attribute", "layer by layer"])
def test_a_network_of_ones_own_has_memory_modes(call):
    batch = compact_batch(MASK, size=(32, 32)).map(torch.Tensor.float)
    kept, outcomes = [], []
    for mode in ALL:
        torch.manual_seed(0)
        net = Own() if call in ("module", "layer by layer") else OwnNetwork()
        if call == "its attribute":
            net.memory = mode
        else:
            apply_memory_mode(net, mode)

        def loss(net=net):
            if call != "layer by layer":
                return net(batch).square().sum()
            out = net.norm(net.conv(batch))
            for block in net.blocks:
                out = block(out)
            return net.head(out.integrated.mean((2, 3))).square().sum()

        kept.append(kept_bytes(loss, lasting(net, batch)))
        loss().backward()
        outcomes.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
    for mode_outcome in outcomes[1:]:
        assert_bit_equal(mode_outcome, outcomes[0])
    assert kept == sorted(set(kept), reverse=True), "every mode keeps less than the one before"


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'tiny'"):
        apply_memory_mode(Own(), "tiny")
