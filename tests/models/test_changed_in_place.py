"""What changes between the forward and the backward pass: every memory mode does what fast does.

Fast is autograd's own doing: it gives the gradients of the forward pass as it was, or refuses.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from manystream.layers import StreamConv2d, StreamNormAct2d
from tests.builders import INTEGRATED_FAMILIES, mask_of, random_images
from tests.models.test_memory_modes import MODES, network

MASK = mask_of("11 10 01 11")
TARGET = torch.arange(4)


class Pass:
    """A network, its images, and the loss of a forward pass."""

    def __init__(self, net, *, present=MASK, dtype=None):
        self.net = net
        self.dtype = dtype
        images = random_images(MASK, size=(17, 21), dtype=torch.float32)
        self.images = [x.contiguous(memory_format=torch.channels_last) for x in images]
        self.present = present
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.5)

    def loss(self):
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype is not None):
            logits = self.net(self.images, present=self.present)
        return F.cross_entropy(logits.float(), TARGET)

    def gradients(self):
        found = {n: p.grad for n, p in self.net.named_parameters() if p.grad is not None}
        return {**found, **{f"image {m}": x.grad for m, x in enumerate(self.images)}}


def outcome(situation, net, mode, dtype=None):
    """Gradients and buffers after a situation, or that it was refused."""
    net = copy.deepcopy(net)
    net.memory = mode
    torch.manual_seed(1)
    run = Pass(net, present=getattr(situation, "present", MASK), dtype=dtype)
    try:
        situation(run)
    except RuntimeError as error:
        # In the words of autograd for what was saved, or for a view that is not to be changed.
        if "modified by an inplace operation" in str(error) or "is a view" in str(error):
            return "refused"
        raise
    return {**run.gradients(), **dict(net.named_buffers())}


def assert_same(ours, expected):
    assert (ours == "refused") == (expected == "refused"), (type(ours), type(expected))
    if expected == "refused":
        return
    assert ours.keys() == expected.keys()
    different = [
        name
        for name, value in expected.items()
        if not (value is None and ours[name] is None) and not torch.equal(ours[name], value)
    ]
    assert different == []


def everyone_present(situation):
    """Images are then taken as they are, not copied row by row."""
    situation.present = torch.ones_like(MASK)
    return situation


@everyone_present
def images_refilled(run):
    loss = run.loss()
    for x in run.images:
        x.copy_(torch.randn_like(x))
    loss.backward()


@everyone_present
def images_refilled_of_a_frozen_stem(run):
    run.net.conv1.requires_grad_(False)
    images_refilled(run)


@everyone_present
def images_refilled_of_a_frozen_stem_with_its_norm(run):
    run.net.bn1.requires_grad_(False)
    images_refilled_of_a_frozen_stem(run)


@everyone_present
def images_refilled_of_frozen_streams(run):
    freeze_streams(run.net)
    images_refilled(run)


@everyone_present
def images_refilled_through_data(run):
    loss = run.loss()
    for x in run.images:
        x.data = torch.randn_like(x)
    loss.backward()


def images_refilled_after_rows_were_taken(run):
    images_refilled(run)


def weights_changed(run):
    loss = run.loss()
    with torch.no_grad():
        for p in run.net.parameters():
            p.mul_(1.5)
    loss.backward()


def weights_changed_through_data(run):
    loss = run.loss()
    for p in run.net.parameters():
        p.data = 1.5 * p.data
    loss.backward()


def kernels_changed(run):
    loss = run.loss()
    with torch.no_grad():
        run.net.layer2[0].conv1.streams[0].weight.add_(1)
    loss.backward()


def first_kernel_changed(run):
    loss = run.loss()
    with torch.no_grad():
        run.net.conv1.streams[0].weight.add_(1)
    loss.backward()


def norm_changed(run):
    loss = run.loss()
    with torch.no_grad():
        run.net.layer2[0].bn1.streams[0].bias.add_(1)
    loss.backward()


def integrated_norm_changed(run):
    loss = run.loss()
    with torch.no_grad():
        run.net.layer3[0].bn1.integrated.weight.add_(1)
    loss.backward()


def mixing_changed(run):
    loss = run.loss()
    with torch.no_grad():
        for p in run.net.layer3[0].conv1.integration.parameters():
            p.add_(1)
    loss.backward()


def frozen_weights_changed(run):
    freeze_streams(run.net)
    loss = run.loss()
    with torch.no_grad():
        for p in run.net.parameters():
            if not p.requires_grad:
                p.add_(1)
    loss.backward()


def frozen_first_layers_changed(run):
    first = (run.net.conv1, run.net.bn1, run.net.layer1, run.net.layer2)
    for module in first:
        module.requires_grad_(False)
    loss = run.loss()
    with torch.no_grad():
        for module in first:
            for p in module.parameters():
                p.add_(1)
    loss.backward()


def a_step_between_two_backward_passes(run):
    loss = run.loss()
    loss.backward(retain_graph=True)
    run.optimizer.step()
    loss.backward()


def a_step_of_the_head_between(run):
    loss = run.net(run.images, present=MASK).mean()
    loss.backward(retain_graph=True)
    with torch.no_grad():
        run.net.fc.bias.add_(1)  # which nothing was saved of
    loss.backward()


def statistics_changed(run):
    run.net.eval()
    loss = run.loss()
    for buffer in run.net.buffers():
        buffer.add_(1)
    loss.backward()


def another_forward_pass_between(run):
    loss = run.loss()
    run.loss()
    loss.backward()


def two_backward_passes(run):
    loss = run.loss()
    loss.backward(retain_graph=True)
    loss.backward()


def two_forward_passes(run):
    (run.loss() + run.loss()).backward()


def gradients_accumulate(run):
    for _ in range(3):
        run.loss().backward()
    run.optimizer.step()
    run.loss().backward()


def images_want_gradients(run):
    for x in run.images:
        x.requires_grad_()
    run.loss().backward()


def frozen_parts(run):
    freeze_streams(run.net)
    run.loss().backward()


def frozen_kernels(run):
    for module in run.net.modules():
        if isinstance(module, StreamConv2d):
            module.requires_grad_(False)
    run.loss().backward()


def evaluation(run):
    run.net.eval()
    run.loss().backward()


def without_gradients_first(run):
    with torch.no_grad():
        run.loss()
    run.loss().backward()


def an_error_in_between(run):
    handle = run.net.layer3.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.loss()
    handle.remove()
    run.loss().backward()


def an_error_before_the_backward_pass(run):
    loss = run.loss()
    with pytest.raises(ZeroDivisionError):
        run.net(run.images, present=1 / 0)
    loss.backward()


def part_of_the_gradients(run):
    loss = run.loss()
    last = list(run.net.layer3.parameters())
    torch.autograd.grad(loss, [p for p in last if p.requires_grad], retain_graph=True)
    loss.backward()


def other_images_for_the_second_pass(run):
    first = run.loss()
    run.images = [torch.randn_like(x) for x in run.images]
    (first + run.loss()).backward()


def through_hooks(kind, change, when="at once"):
    """A situation in which a hook changes what each layer of a kind gives, in place."""

    def situation(run):
        outputs = []

        def hook(module, args, output):
            tensors = [t for t in (*output.streams, output.integrated) if t is not None]
            outputs.extend(tensors)
            if when == "at once":
                for t in tensors:
                    change(t)

        for module in run.net.modules():
            if isinstance(module, kind):
                module.register_forward_hook(hook)
        loss = run.loss()
        if when == "later":
            with torch.no_grad():
                for t in outputs:
                    change(t)
        loss.backward()

    situation.__name__ = f"{kind.__name__}_changed_{when}_{change.__name__}"
    return situation


def only_integrated(kind):
    """A situation in which a hook changes the integrated map that each layer of a kind gives."""

    def situation(run):
        def hook(module, args, output):
            output.integrated.mul_(0.5)

        for module in run.net.modules():
            if isinstance(module, kind):
                module.register_forward_hook(hook)
        run.loss().backward()

    situation.__name__ = f"integrated_{kind.__name__}_changed"
    return situation


def one_output_changed(path, stream):
    """A situation in which a hook changes one output of one layer, in place."""

    def situation(run):
        def hook(module, args, output):
            output.streams[stream].mul_(0.5)

        run.net.get_submodule(path).register_forward_hook(hook)
        run.loss().backward()

    situation.__name__ = f"{path}_stream_{stream}_changed"
    return situation


def raw_outputs_changed(run):
    for module in run.net.modules():
        if isinstance(module, StreamConv2d):
            for conv in module.streams:
                conv.register_forward_hook(lambda module, args, y: y.mul_(0.5))
    run.loss().backward()


def outputs_replaced(run):
    for module in run.net.modules():
        if isinstance(module, StreamNormAct2d):
            module.register_forward_hook(lambda module, args, out: out.map(lambda y: 2 * y))
    run.loss().backward()


def freeze_streams(net):
    for module in net.modules():
        if isinstance(module, StreamConv2d | StreamNormAct2d):
            module.streams.requires_grad_(False)


def half(t):
    t.mul_(0.5)


def detached_half(t):
    t.detach().mul_(0.5)


def through_data(t):
    t.data.mul_(1)


ACCEPTED = [
    images_refilled_of_a_frozen_stem,
    images_refilled_of_a_frozen_stem_with_its_norm,
    images_refilled_of_frozen_streams,
    images_refilled_through_data,
    images_refilled_after_rows_were_taken,
    weights_changed_through_data,
    frozen_first_layers_changed,
    a_step_of_the_head_between,
    statistics_changed,
    another_forward_pass_between,
    two_backward_passes,
    two_forward_passes,
    gradients_accumulate,
    images_want_gradients,
    frozen_parts,
    frozen_kernels,
    evaluation,
    without_gradients_first,
    an_error_in_between,
    an_error_before_the_backward_pass,
    part_of_the_gradients,
    other_images_for_the_second_pass,
    raw_outputs_changed,
    outputs_replaced,
    only_integrated(StreamConv2d),
    through_hooks(StreamNormAct2d, through_data),
]

REFUSED = [
    images_refilled,
    weights_changed,
    kernels_changed,
    first_kernel_changed,
    norm_changed,
    integrated_norm_changed,
    mixing_changed,
    a_step_between_two_backward_passes,
    through_hooks(StreamNormAct2d, half),
    through_hooks(StreamNormAct2d, detached_half),
    through_hooks(StreamNormAct2d, half, "later"),
    through_hooks(StreamConv2d, half, "later"),
    only_integrated(StreamNormAct2d),
    one_output_changed("layer1.0.bn1", 0),
    one_output_changed("layer2.0", 1),
    one_output_changed("conv1", 0),
]

OPEN = [one_output_changed("bn1", 0), one_output_changed("layer2.0.downsample", 0)]
"""Whether autograd refuses these depends on the family or the layer."""


def name_of(situation):
    return getattr(situation, "__name__", None)


@pytest.mark.parametrize("family", INTEGRATED_FAMILIES)
@pytest.mark.parametrize("situation", [*ACCEPTED, *REFUSED, *OPEN], ids=name_of)
def test_every_mode_does_what_fast_does(situation, family):
    net = network(family, layers=(1, 1, 1, 1))
    expected = outcome(situation, net, "fast")
    if situation in ACCEPTED:
        assert expected != "refused"
    if situation in REFUSED:
        assert expected == "refused"
    for mode in MODES:
        assert_same(outcome(situation, net, mode), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "situation",
    [
        images_refilled,
        images_refilled_of_a_frozen_stem,
        weights_changed,
        norm_changed,
        only_integrated(StreamConv2d),
        only_integrated(StreamNormAct2d),
        frozen_parts,
    ],
    ids=name_of,
)
def test_so_it_does_under_autocast(situation, mode):
    net = network(block="bottleneck", layers=(1, 1, 1, 1))
    expected = outcome(situation, net, "fast", torch.bfloat16)
    assert_same(outcome(situation, net, mode, torch.bfloat16), expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_kernel_changed_under_autocast_is_never_taken_for_the_old_one(mode):
    net = network(layers=(1, 1, 1, 1))
    expected = outcome(kernels_changed, net, "fast", torch.bfloat16)
    assert expected != "refused"  # fast has its copies
    assert outcome(kernels_changed, net, mode, torch.bfloat16) == "refused"
