import logging
from pathlib import Path

import pytest
import torch

from manystream import create_model
from manystream.models import load_pretrained_stream
from manystream.models.weights.pretrained import adapt_channels
from tests.builders import (
    INTEGRATED_FAMILIES,
    WIDTHS,
    mask_of,
    random_images,
    randomise,
    small_resnet,
)
from tests.models.plain_resnet import plain_resnet
from tests.models.weights.pretrained import (
    LAYERS,
    RESNET18,
    WIDTH,
    assert_only_changed,
    narrow_model,
    resnet18,
    snapshot,
)


@pytest.mark.parametrize("family", [*INTEGRATED_FAMILIES, "late_fusion"])
@pytest.mark.parametrize(("stream", "number", "channels"), [("rgb", 0, 3), ("depth", 1, 1)])
def test_every_tensor_goes_to_its_stream(
    family: str, stream: str, number: int, channels: int
) -> None:
    model, state = narrow_model(family), resnet18(channels)
    before = snapshot(model)
    report = load_pretrained_stream(model, stream, state)
    after = model.state_dict()
    for key in RESNET18 - {"fc.weight", "fc.bias"}:
        module, tensor = key.rsplit(".", 1)
        ours = f"{module}.streams.{number}.{tensor}"
        assert torch.equal(after[ours], state[key]), key
        assert after[ours].dtype == before[ours].dtype
    assert_only_changed(model, before, f".streams.{number}.")
    assert set(report.loaded) == RESNET18 - {"fc.weight", "fc.bias"}
    assert report.adapted == ()
    assert report.left_aside == ("fc.weight", "fc.bias")
    assert str(report) == "120 tensors loaded; left aside: fc.weight, fc.bias"


@pytest.mark.parametrize(("stream", "came", "due"), [("rgb", 1, 3), ("rgb", 4, 3), ("depth", 3, 1)])
def test_the_first_convolution_adapts(stream: str, came: int, due: int) -> None:
    """An image with the same value in every channel gives the same output as before."""
    model, state = narrow_model(), resnet18(came)
    report = load_pretrained_stream(model, stream, state)
    assert report.adapted == ("conv1.weight",)
    assert "adapted to its channels: conv1.weight" in str(report)
    number = model.stream_names.index(stream)
    adapted = model.conv1.streams[number].weight
    assert adapted.shape[1] == due
    # Mean over colours, rescaled.
    mean = state["conv1.weight"].sum(dim=1) / came
    for channel in range(due):
        torch.testing.assert_close(adapted[:, channel], mean * came / due)
    grey = torch.randn(2, 1, 20, 23)
    expected = torch.nn.functional.conv2d(grey.expand(-1, came, -1, -1), state["conv1.weight"])
    output = torch.nn.functional.conv2d(grey.expand(-1, due, -1, -1), adapted)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    # All else is as it came.
    assert torch.equal(model.layer1[0].conv1.streams[number].weight, state["layer1.0.conv1.weight"])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_adapt_channels(channels: int) -> None:
    weight = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    adapted = adapt_channels(weight, channels)
    assert adapted.shape == (4, channels, 5, 5)
    assert adapted.dtype == torch.float64
    torch.testing.assert_close(adapted.sum(dim=1), weight.sum(dim=1))
    assert torch.equal(adapted, adapted[:, :1].expand_as(adapted))
    adapted[:, 0] = 0  # its channels are not views of one another
    assert channels == 1 or adapted[:, 1].any()


def test_counters_are_optional() -> None:
    """Checkpoints of old have none."""
    state = {k: t for k, t in resnet18().items() if not k.endswith("num_batches_tracked")}
    model = narrow_model()
    report = load_pretrained_stream(model, "rgb", state)
    assert len(report.loaded) == 100
    assert model.bn1.streams[0].num_batches_tracked == 0
    assert torch.equal(model.bn1.streams[0].running_mean, state["bn1.running_mean"])


def test_create_model_from_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = resnet18()
    path = tmp_path / "resnet18.pth"
    torch.save({"epoch": 90, "state_dict": {f"module.{k}": t for k, t in state.items()}}, path)
    with caplog.at_level(logging.INFO):
        model = create_model(
            streams={"rgb": 3, "depth": 1},
            num_classes=5,
            width=WIDTH,
            pretrained={"depth": str(path), "rgb": path},
        )
    direct = narrow_model()
    for stream in ("rgb", "depth"):
        load_pretrained_stream(direct, stream, state)
    for key, tensor in model.network.state_dict().items():
        assert ".streams." not in key or torch.equal(tensor, direct.state_dict()[key]), key
    depth, rgb = (record.getMessage() for record in caplog.records)
    assert depth.startswith("stream 'depth': 120 tensors loaded; adapted")
    assert rgb == "stream 'rgb': 120 tensors loaded; left aside: fc.weight, fc.bias"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("family", INTEGRATED_FAMILIES)
def test_a_loaded_stream_computes_what_the_resnet_does(
    family: str, block: str, training: bool
) -> None:
    plain = plain_resnet(3, block=block, layers=LAYERS, widths=WIDTHS).train(training)
    model = small_resnet(1, block, LAYERS, family=family).train(training)
    load_pretrained_stream(model, "0", plain.state_dict())
    (images,) = random_images(mask_of("1 1 1"))
    expected, seen = plain.maps(images), []
    last = "layer4.1"  # after which only the integrated pathway goes on
    for name in expected.keys() - {last}:
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.append((name, out.streams[0]))
        )
    model([images])
    assert len(seen) == 7
    for name, x in seen:
        torch.testing.assert_close(x, expected[name], rtol=1e-10, atol=1e-12)
    # The last block's statistics move too, although nothing depends on them.
    after, due = model.state_dict(), plain.state_dict()
    for key in due.keys() - {"fc.weight", "fc.bias"}:
        module, tensor = key.rsplit(".", 1)
        torch.testing.assert_close(
            after[f"{module}.streams.0.{tensor}"], due[key], rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_single_stream_network_is_the_resnet(block: str, training: bool) -> None:
    plain = plain_resnet(3, block=block, layers=LAYERS, widths=WIDTHS).train(training)
    model = small_resnet(1, block, LAYERS, family="single_stream").train(training)
    randomise(model)
    load_pretrained_stream(model, "0", plain.state_dict())
    model.fc.load_state_dict(plain.fc.state_dict())
    (images,) = random_images(mask_of("1 1 1"))
    logits, expected = model([images]), plain(images)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in plain.named_parameters():
        module, tensor = name.rsplit(".", 1)
        ours = name if module == "fc" else f"{module}.streams.0.{tensor}"
        torch.testing.assert_close(
            model.get_parameter(ours).grad, parameter.grad, rtol=1e-8, atol=1e-10
        )
