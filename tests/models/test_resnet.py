from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from torch import Tensor, nn

from manystream.batch import make_batch
from manystream.layers import LinearIntegration
from manystream.models import StreamResNet
from tests.builders import CHANNELS, WIDTHS, mask_of, presences, random_images, small_resnet

DEPTHS = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
}

VALID: dict[str, Any] = {
    "layers": (1, 1, 1, 1),
    "widths": WIDTHS,
    "in_channels": {"rgb": 3, "depth": 1},
    "num_classes": 5,
}

SIZE = (37, 43)


def full_resnet(depth: int, in_channels: tuple[int, ...]) -> StreamResNet:
    block, layers = DEPTHS[depth]
    with torch.device("meta"):
        return StreamResNet(block=block, layers=layers, in_channels=in_channels, num_classes=7)


def torchvision_names(depth: int) -> set[str]:
    """The state dict of torchvision's ResNet without its head, written from its source."""
    block, layers = DEPTHS[depth]
    convs = {"conv1"}
    norms = {"bn1"}
    for stage, blocks in enumerate(layers, start=1):
        for i in range(blocks):
            for n in range(1, 3 if block == "basic" else 4):
                convs.add(f"layer{stage}.{i}.conv{n}")
                norms.add(f"layer{stage}.{i}.bn{n}")
        if stage > 1 or block == "bottleneck":
            convs.add(f"layer{stage}.0.downsample.0")
            norms.add(f"layer{stage}.0.downsample.1")
    of_norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{c}.weight" for c in convs} | {f"{n}.{k}" for n in norms for k in of_norm}


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_a_stream_has_the_names_of_torchvision(depth: int) -> None:
    state = full_resnet(depth, (3, 1)).state_dict()
    for m in (0, 1):
        ours = {n.replace(f".streams.{m}.", ".") for n in state if f".streams.{m}." in n}
        assert ours == torchvision_names(depth)
    assert "layer1.0.conv1.streams.0.weight" in state
    rest = {n for n in state if ".streams." not in n}
    assert {n for n in rest if ".integration." not in n and ".integrated." not in n} == {
        "fc.weight",
        "fc.bias",
    }


@pytest.mark.parametrize(
    ("depth", "count"),
    [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160)],
)
def test_a_stream_has_the_parameters_of_a_resnet(depth: int, count: int) -> None:
    model = full_resnet(depth, (3, 1))
    counts = [
        sum(p.numel() for n, p in model.named_parameters() if f".streams.{m}." in n) for m in (0, 1)
    ]
    assert counts == [count, count - 2 * 64 * 7 * 7]
    assert model.fc.weight.shape == (7, 512 if depth < 50 else 2048)


def test_the_integrated_pathway_mixes_at_every_convolution() -> None:
    state = full_resnet(18, (3, 1)).state_dict()
    convs = {n.removesuffix(".weight") for n in torchvision_names(18) if state_is_conv(n)}
    mixed = {n.split(".integration.")[0] for n in state if ".integration." in n}
    assert mixed == convs
    assert {n.split(".integration.")[0] for n in state if "integrated_weight" in n} == convs - {
        "conv1"
    }
    norms = {n.removesuffix(".running_mean") for n in torchvision_names(18) if "running_mean" in n}
    assert {n.split(".integrated.")[0] for n in state if ".integrated." in n} == norms


def state_is_conv(name: str) -> bool:
    return "conv" in name or "downsample.0" in name


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize(
    ("size", "maps"),
    [
        ((64, 96), [(16, 24), (8, 12), (4, 6), (2, 3)]),
        ((33, 41), [(9, 11), (5, 6), (3, 3), (2, 2)]),
        ((1, 1), [(1, 1)] * 4),
        ((7, 65), [(2, 17), (1, 9), (1, 5), (1, 3)]),
    ],
)
def test_forward_features(block: str, size: tuple[int, int], maps: list[tuple[int, int]]) -> None:
    model = small_resnet(2, block).eval()
    images = random_images(mask_of("11 10 01"), size=size)
    features = model.forward_features(images, present=mask_of("11 10 01"))
    expansion = 1 if block == "basic" else 4
    shapes = [(3, expansion * width, *side) for width, side in zip(WIDTHS, maps, strict=True)]
    assert [tuple(x.shape) for x in features] == shapes
    logits = model.fc(features[-1].mean(dim=(2, 3)))
    torch.testing.assert_close(logits, model(images, present=mask_of("11 10 01")))


@settings(max_examples=25)
@given(presences())
@example("01 11 10 11 01")
@example("110 101 011 110")
def test_samples_do_not_see_each_other_in_eval(words: str) -> None:
    """Each row of the logits and of the features is what its sample gives alone."""
    mask = mask_of(words)
    model = small_resnet(mask.shape[1]).eval()
    images = random_images(mask, size=SIZE)
    together = [model(images, present=mask), *model.forward_features(images, present=mask)]
    for b in range(len(mask)):
        single, only = [x[b : b + 1] for x in images], mask[b : b + 1]
        alone = [model(single, present=only), *model.forward_features(single, present=only)]
        for x, y in zip(together, alone, strict=True):
            torch.testing.assert_close(x[b], y[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("words", ["11 11 11 11", "01 11 10 11", "110 101 011 001"])
def test_logits_follow_the_callers_order(words: str, training: bool) -> None:
    mask = mask_of(words)
    images = random_images(mask, size=SIZE)
    permutation = torch.tensor([2, 0, 3, 1])
    model = small_resnet(mask.shape[1]).train(training)
    logits = model(images, present=mask)
    shuffled = model([x[permutation] for x in images], present=mask[permutation])
    torch.testing.assert_close(shuffled, logits[permutation], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_the_dtype_stays(block: str) -> None:
    mask = mask_of("11 10")
    for dtype in (torch.float32, torch.float64):
        model = small_resnet(2, block, dtype=dtype)
        images = random_images(mask, size=SIZE, dtype=dtype)
        assert model(images, present=mask).dtype == dtype
        assert {x.dtype for x in model.forward_features(images, present=mask)} == {dtype}


def test_one_input_written_in_many_ways() -> None:
    model = StreamResNet(**VALID).eval()
    mask = mask_of("11 10 11")
    rgb, depth = random_images(mask, size=SIZE, dtype=torch.float32)
    lost = ~mask[:, 1]
    expected = model([rgb, depth], present=mask)
    batch = make_batch([rgb, depth], model.in_channels, present=mask)
    for same in (
        model({"depth": depth, "rgb": rgb}, present=mask),
        model([rgb, depth], blanked_mask={1: lost}),
        model((rgb, depth), blanked_mask={"depth": lost}),
        model(batch),
    ):
        assert torch.equal(same, expected)
    everything = torch.ones_like(mask)
    assert torch.equal(model([rgb, depth]), model([rgb, depth], present=everything))
    without = model([rgb, depth], present=mask_of("10 10 10"))
    assert torch.equal(model([rgb, None]), without)
    assert torch.equal(model({"rgb": rgb}), without)


def test_kernels_and_maps_are_channels_last() -> None:
    model = small_resnet(2)
    kernels = [p for p in model.parameters() if p.dim() == 4]
    assert len(kernels) > 50
    maps: list[Tensor] = []
    for layer in (model.bn1, model.layer1, model.layer3, model.layer4):
        layer.register_forward_hook(lambda _, __, out: maps.extend((*out.streams, out.integrated)))
    model(random_images(mask_of("11 10 01"), size=SIZE), present=mask_of("11 10 01"))
    assert len(maps) == 3 * 3 + 1
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in (*kernels, *maps))


def test_dropout_before_the_head_in_training_only() -> None:
    mask = mask_of("11 11 11")
    images = random_images(mask, size=SIZE)
    kept = []
    model = small_resnet(2, dropout=0.5)
    model.fc.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    torch.manual_seed(0)
    model(images)
    (features,) = model.train().forward_features(images)[-1:]
    pooled = features.mean(dim=(2, 3))
    zeroed = kept[0] == 0
    assert 0 < zeroed.sum() < zeroed.numel()
    torch.testing.assert_close(kept[0][~zeroed], 2 * pooled[~zeroed])
    model.eval()(images)
    torch.testing.assert_close(
        kept[1], model.forward_features(images)[-1].mean(dim=(2, 3)), rtol=1e-12, atol=0
    )


def test_streams_are_named_at_the_edge() -> None:
    assert StreamResNet(**VALID).stream_names == ("rgb", "depth")
    assert StreamResNet(**VALID | {"in_channels": [3, 1, 2]}).stream_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("family", "rule", "norm"), [("li_net3", LinearIntegration, nn.BatchNorm2d)]
)
def test_the_family_decides_the_rule_and_the_norm(
    family: str, rule: type[nn.Module], norm: type[nn.Module]
) -> None:
    modules = dict(small_resnet(2, family=family).named_modules())
    assert {type(m) for n, m in modules.items() if n.endswith(".integration")} == {rule}
    assert {type(m) for n, m in modules.items() if n.endswith(".integrated")} == {norm}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "resnet"}, "unknown family 'resnet'; expected one of li_net3"),
        ({"block": "wide"}, "unknown block 'wide'; expected one of basic, bottleneck"),
        ({"layers": (1, 1, 1)}, r"layers are \(1, 1, 1\) .*expected four positive numbers each"),
        ({"layers": (1, 0, 1, 1)}, r"layers are \(1, 0, 1, 1\)"),
        ({"widths": (4, 4, 4, 4, 4)}, r"widths \(4, 4, 4, 4, 4\); expected four"),
        ({"widths": (4, -4, 4, 4)}, r"widths \(4, -4, 4, 4\); expected four positive"),
        ({"num_classes": 0}, "num_classes is 0; expected at least 1"),
        ({"dropout": 1.0}, r"dropout is 1.0; expected a probability in \[0, 1\)"),
        ({"dropout": -0.1}, "dropout is -0.1; expected"),
        ({"in_channels": {}}, "streams are {}; expected at least one"),
        ({"in_channels": [3, 0]}, "streams are {'0': 3, '1': 0}; expected at least one, each with"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamResNet(**VALID | arguments)


IMAGES = random_images(mask_of("11 11"), size=SIZE, dtype=torch.float32)


@pytest.mark.parametrize(
    ("inputs", "masks", "message"),
    [
        (IMAGES[::-1], {}, r"stream 'rgb' has shape \(2, 1, 37, 43\); expected \(B, 3, H, W\)"),
        (IMAGES[:1], {}, "expected a list of 2 tensors, rgb, depth"),
        ({"rgb": IMAGES[0], "ir": IMAGES[1]}, {}, "unknown stream 'ir'"),
        (IMAGES, {"present": mask_of("11 00")}, r"samples without any stream: 1 \(1 of 2\)"),
        (IMAGES, {"present": mask_of("11")}, r"expected bool of shape \(2, 2\)"),
        (IMAGES, {"blanked_mask": {"ir": mask_of("1 1").flatten()}}, "names stream 'ir'"),
        (
            make_batch(IMAGES, {"rgb": 3, "depth": 1}),
            {"present": mask_of("11 11")},
            "a StreamBatch already says who is present",
        ),
        (
            make_batch(IMAGES[::-1], {"depth": 1, "rgb": 3}),
            {},
            r"streams of \[1, 3\] channels; this model expects {'rgb': 3, 'depth': 1}",
        ),
        (
            make_batch([*IMAGES, IMAGES[1]], {"a": 3, "b": 1, "c": 1}),
            {},
            r"streams of \[3, 1, 1\] channels",
        ),
    ],
)
def test_bad_inputs(inputs: Any, masks: dict[str, Any], message: str) -> None:
    model = StreamResNet(**VALID)
    before = {n: b.clone() for n, b in model.named_buffers()}
    for call in (model, model.forward_features):
        with pytest.raises(ValueError, match=message):
            call(inputs, **masks)
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


def test_a_new_network_gives_every_class_a_chance() -> None:
    """As initialised: finite logits of moderate size, in training and in eval."""
    torch.manual_seed(0)
    model = StreamResNet(layers=(2, 2, 2, 2), widths=(8, 16, 32, 64), num_classes=5)
    images: list[Tensor] = random_images(mask_of("11 01 10 11"), CHANNELS, (64, 64), torch.float32)
    for training in (True, False):
        logits = model.train(training)(images, present=mask_of("11 01 10 11"))
        assert logits.isfinite().all()
        assert 0 < logits.std() < 4


@pytest.mark.filterwarnings("ignore")  # of torch's own, where it breaks the graph
def test_a_compiled_network_trains_alike() -> None:
    network = small_resnet().train()
    batch = network.to_batch(random_images(mask := mask_of("11 01 10 11")), mask)
    before, found = deepcopy(network.state_dict()), []
    for called in (network, torch.compile(network, backend="aot_eager")):
        network.load_state_dict(before)
        network.zero_grad()
        loss = called(batch).square().sum()
        loss.backward()
        grads = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        found.append([loss.detach(), *grads, *(b.clone() for b in network.buffers())])
    torch.compiler.reset()
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
