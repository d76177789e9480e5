"""Equality with what the original implementation computed, on every recorded file."""

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from manystream.models import StreamResNet, load_original
from manystream.models.weights.original import original_key, read_original
from tests.builders import INTEGRATED_FAMILIES, random_images, with_absent
from tests.models.weights.originals import (
    REFERENCE_FILES,
    part,
    read_reference,
    real_checkpoint,
    synthetic_checkpoint,
)

RELATIVE, FLOOR = 1e-11, 1e-15
"""Of a tensor's norm; the floor is for gradients that are zero but for rounding."""

LAYOUT = ("family", "block", "layers", "widths", "in_channels", "num_classes")

each_file = pytest.mark.parametrize("path", REFERENCE_FILES)
each_family = pytest.mark.parametrize("family", INTEGRATED_FAMILIES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def assert_equal(actual: Tensor, expected: Tensor, name: str) -> None:
    assert actual.dtype == expected.dtype, name
    assert actual.shape == expected.shape, name
    apart = (actual - expected).norm().item()
    assert apart <= RELATIVE * expected.norm().item() + FLOOR, f"{name} is {apart} apart"


def open_reference(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], StreamResNet]:
    config, recorded = read_reference(path)
    return config, recorded, load_original(real_checkpoint(recorded))


def images_of(recorded: dict[str, Tensor]) -> list[Tensor]:
    """Recorded images, in which the absent ones are not to be read."""
    inputs = part(recorded, "input/")
    images = [inputs[str(m)] for m in range(len(inputs))]
    return with_absent(images, recorded["present"], float("nan"))


def by_original_layer(state: dict[str, Tensor], family: str) -> dict[str, list[int]]:
    """Our counters under the name of the one that the original has for the layer."""
    counters = defaultdict(list)
    for key, tensor in state.items():
        if key.endswith("num_batches_tracked"):
            counters[original_key(key, family)].append(int(tensor))
    return counters


@each_file
def test_the_layout_is_inferred(path: Path) -> None:
    config, recorded = read_reference(path)
    checkpoint = read_original(real_checkpoint(recorded))
    inferred = {k: list(v) if isinstance(v, tuple) else v for k, v in checkpoint.layout.items()}
    assert inferred == {key: config[key] for key in LAYOUT}
    extra = {"conv1.integrated_weight", "fc_streams.0.weight", "fc_streams.0.bias"}
    scalar = {"conv1.integrated_mixing_scalar"} if "direct" in config["family"] else set()
    aside = {key for key in part(recorded, "state/") if key.startswith("fc_streams.")}
    assert set(checkpoint.left_aside) == extra | scalar | aside


@each_file
def test_logits_in_evaluation(path: Path) -> None:
    _, recorded, network = open_reference(path)
    inputs = part(recorded, "input/")
    images = [inputs[str(m)] for m in range(len(inputs))]
    network.eval()
    assert_equal(network(images), recorded["eval/logits_all_present"], "logits, all present")
    everything = torch.ones_like(recorded["present"])
    assert_equal(
        network(images, present=everything), recorded["eval/logits_all_present"], "all by mask"
    )
    if "eval/logits_present" in recorded:
        logits = network(images_of(recorded), present=recorded["present"])
        assert_equal(logits, recorded["eval/logits_present"], "logits of the present")


@each_file
def test_a_training_step(path: Path) -> None:
    config, recorded, network = open_reference(path)
    logits = network.train()(images_of(recorded), present=recorded["present"])
    assert_equal(logits, recorded["train/logits"], "logits in training")
    loss = F.cross_entropy(logits, recorded["target"])
    assert_equal(loss, recorded["train/loss"], "loss")
    loss.backward()
    due = part(recorded, "grad/")
    for name, parameter in network.named_parameters():
        expected = due.pop(original_key(name, config["family"]), None)
        if expected is None:
            assert parameter.grad is None or not parameter.grad.any(), name
        elif parameter.grad is None:
            assert not expected.any(), name
        else:
            assert_equal(parameter.grad, expected, f"gradient of {name}")
    # What is left has no part in the prediction: nothing may have come back to it.
    assert all(key.startswith(("conv1.integrated_", "fc_streams.")) for key in due)
    assert not any(gradient.any() for gradient in due.values())


@each_file
def test_buffers_after_a_training_forward(path: Path) -> None:
    config, recorded, network = open_reference(path)
    network.train()(images_of(recorded), present=recorded["present"])
    due = part(recorded, "after/")
    buffers = dict(network.named_buffers())
    for name, buffer in buffers.items():
        if not name.endswith("num_batches_tracked"):
            assert_equal(buffer, due.pop(original_key(name, config["family"])), name)
    # The original counts a layer's batches once, ours each norm's: that of the busiest.
    counters = by_original_layer(buffers, config["family"])
    assert {name: int(counter) for name, counter in due.items()} == {
        name: max(counts) for name, counts in counters.items()
    }


@each_file
def test_a_counter_of_ours_moves_with_its_rows(path: Path) -> None:
    _, recorded, network = open_reference(path)
    before = {n: b.clone() for n, b in network.named_buffers()}
    network.train()(images_of(recorded), present=recorded["present"])
    for name, buffer in network.named_buffers():
        if name.endswith("num_batches_tracked"):
            has_rows = ".streams." not in name or bool(
                recorded["present"][:, int(name.split(".")[-2])].any()
            )
            assert buffer - before[name] == int(has_rows), name


@each_file
def test_every_tensor_has_one_name_there_and_back(path: Path) -> None:
    config, recorded, network = open_reference(path)
    left_aside = ("fc_streams.", "conv1.integrated_")
    theirs = {k: t for k, t in part(recorded, "state/").items() if not k.startswith(left_aside)}
    ours = defaultdict(list)
    for key, tensor in network.state_dict().items():
        ours[original_key(key, config["family"])].append(tensor)
    assert ours.keys() == theirs.keys()
    for name, tensors in ours.items():
        assert len(tensors) == 1 or name.endswith("num_batches_tracked"), name
        assert all(torch.equal(t, theirs[name]) for t in tensors), name


NAMES = """
li_net3 conv1.streams.1.weight conv1.stream_weights.1
li_net3 layer2.0.downsample.0.streams.0.weight layer2.0.downsample.0.stream_weights.0
li_net3 layer3.1.conv3.integration.integrated_weight layer3.1.conv3.integrated_weight
li_net3 layer1.0.conv2.integration.stream_weights.12 layer1.0.conv2.integration_from_streams.12
li_net3 bn1.streams.0.weight bn1.stream_weights.0
li_net3 layer1.0.bn2.streams.1.bias layer1.0.bn2.stream_biases.1
li_net3 layer1.0.bn2.streams.11.running_mean layer1.0.bn2.stream11_running_mean
li_net3 layer4.0.downsample.1.integrated.running_var layer4.0.downsample.1.integrated_running_var
li_net3 bn1.integrated.weight bn1.integrated_weight
li_net3 bn1.streams.1.num_batches_tracked bn1.num_batches_tracked
li_net3 bn1.integrated.num_batches_tracked bn1.num_batches_tracked
li_net3_soma bn1.integrated.bias bn1.integrated_groupnorm.bias
direct_mixing_conv layer4.1.bn2.integrated.weight layer4.1.bn2.integrated_groupnorm.weight
direct_mixing_conv conv1.integration.stream_scalars.0 conv1.stream_mixing_scalars.0
direct_mixing_conv layer1.0.conv1.integration.integrated_scalar layer1.0.conv1.integrated_mixing_scalar
direct_mixing_conv fc.weight fc.weight
"""  # noqa: E501


@pytest.mark.parametrize("line", NAMES.strip().splitlines())
def test_names(line: str) -> None:
    family, ours, theirs = line.split()
    assert original_key(ours, family) == theirs


@pytest.mark.parametrize("key", ["bn1.streams.0.momentum", "layer1", "conv1.weight"])
def test_no_name(key: str) -> None:
    with pytest.raises(ValueError, match=f"no name for '{key}'"):
        original_key(key, "li_net3")


@each_dtype
@each_family
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_the_dtype_is_kept(family: str, block: str, dtype: torch.dtype) -> None:
    network = load_original(synthetic_checkpoint(family, block, dtype))
    floating = {t.dtype for t in network.state_dict().values() if t.is_floating_point()}
    assert floating == {dtype}
    assert network.training
    images = random_images(torch.ones(2, 2, dtype=torch.bool), dtype=dtype)
    assert network(images).dtype == dtype


@each_family
def test_left_aside_keys_are_logged(family: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = synthetic_checkpoint(family)
    with caplog.at_level(logging.INFO):
        load_original(checkpoint)
    (record,) = [r for r in caplog.records if r.name == "manystream.models.weights.original"]
    aside = {k for k in checkpoint if k.startswith(("fc_streams.", "conv1.integrated_"))}
    assert len(aside) == (6 if family == "direct_mixing_conv" else 5)
    assert set(record.getMessage().removeprefix("left aside: ").split(", ")) == aside


def test_nothing_is_logged_where_nothing_is_left_aside(caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = synthetic_checkpoint()
    aside = ("fc_streams.", "conv1.integrated_")
    load_original({k: t for k, t in checkpoint.items() if not k.startswith(aside)})
    assert not caplog.records


@each_dtype
@pytest.mark.parametrize("form", ["safetensors", "torch", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_any_file(form: str, wrapped: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    checkpoint = synthetic_checkpoint("direct_mixing_conv", dtype=dtype)
    expected = load_original(checkpoint).state_dict()
    if wrapped:
        checkpoint = {f"module.{key}": t for key, t in checkpoint.items()}
    path = tmp_path / ("file.safetensors" if form == "safetensors" else "file.pth")
    if form == "safetensors":
        save_file(checkpoint, path)
    else:
        torch.save(checkpoint if form == "torch" else {"epoch": 3, form: checkpoint}, path)
    for source in (path, str(path)):
        loaded = load_original(source).state_dict()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(t, expected[key]) for key, t in loaded.items())
        assert {t.dtype for t in loaded.values()} == {dtype, torch.int64}


def test_the_network_shares_nothing_with_the_checkpoint() -> None:
    checkpoint = synthetic_checkpoint()
    network = load_original(checkpoint)
    before = {key: t.clone() for key, t in network.state_dict().items()}
    for tensor in checkpoint.values():
        tensor.fill_(7)
    assert all(torch.equal(t, before[key]) for key, t in network.state_dict().items())
