"""Checkpoints that are not the original's, or not whole: the first offending keys are named."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from manystream.models import load_original
from tests.builders import INTEGRATED_FAMILIES, small_resnet
from tests.models.weights.originals import synthetic_checkpoint

State = dict[str, Tensor]

each_family = pytest.mark.parametrize("family", INTEGRATED_FAMILIES)


def without(state: State, pattern: str) -> State:
    """The state without the keys that match, of which there must be one."""
    kept = {key: t for key, t in state.items() if not re.search(pattern, key)}
    assert len(kept) < len(state)
    return kept


def assert_refused(state: State, *parts: str) -> None:
    before = {key: tensor.clone() for key, tensor in state.items()}
    with pytest.raises(ValueError, match=".*".join(map(re.escape, parts))):
        load_original(state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in state.items())


def ordinary_resnet() -> State:
    """The first tensors and the head of a ResNet-18 in torchvision's names."""
    return {
        "conv1.weight": torch.zeros(64, 3, 7, 7),
        "bn1.weight": torch.zeros(64),
        "layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3),
        "fc.weight": torch.zeros(1000, 512),
    }


def test_an_ordinary_resnet() -> None:
    assert_refused(
        ordinary_resnet(),
        "not a checkpoint of the original implementation",
        "conv1.weight, bn1.weight",
        "expected conv1.stream_weights.0",
    )


@each_family
def test_our_own_names(family: str) -> None:
    assert_refused(small_resnet(2, family=family).state_dict(), "expected conv1.stream_weights.0")


@each_family
@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        (r"^fc\.", "fc.weight"),
        (r"^fc\.bias", "fc.bias"),
        (r"^layer4\.", "layer4.0.conv1.stream_weights.0"),
        (r"^layer[1-4]", "layer1.0.conv1.stream_weights.0"),
        (r"^conv1\.", "conv1.stream_weights.0"),
        (r"^layer3\.0\.conv2\.", "layer3.0.conv2.stream_weights.0"),
        (r"^layer2\.0\.downsample\.", "layer2.0.downsample.0.stream_weights.0"),
        (r"^layer2\.0\.conv1\.integrated_weight", "layer2.0.conv1.integrated_weight"),
        (r"^layer1\.0\.bn1\.stream1_running_var", "layer1.0.bn1.stream1_running_var"),
        (r"^layer1\.0\.bn1\.num_batches_tracked", "layer1.0.bn1.num_batches_tracked"),
    ],
)
def test_truncated(family: str, pattern: str, named: str) -> None:
    assert_refused(without(synthetic_checkpoint(family), pattern), "expected", named)


@each_family
def test_truncated_anywhere(family: str) -> None:
    """Without any one of its tensors that has a part in the prediction, it is named."""
    state = synthetic_checkpoint(family)
    aside = ("fc_streams.", "conv1.integrated_")
    needed = [key for key in state if not key.startswith(aside)]
    assert len(needed) > 150
    for key in needed[::7]:
        assert_refused({k: t for k, t in state.items() if k != key}, key)


@each_family
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_cut_off(family: str, share: float) -> None:
    state = synthetic_checkpoint(family)
    kept = dict(list(state.items())[: int(share * len(state))])
    assert_refused(kept, "expected", "fc.weight")


@each_family
@pytest.mark.parametrize("stream", [0, 1])
def test_a_stream_is_missing(family: str, stream: int) -> None:
    """Whatever is left of it elsewhere."""
    state = synthetic_checkpoint(family)
    convolutions = rf"(conv\d|downsample\.0)\.stream_weights\.{stream}$"
    assert_refused(without(state, convolutions), f"conv1.stream_weights.{stream}")
    everything_of_conv1 = rf"^conv1\..*\.{stream}$"
    assert_refused(without(state, everything_of_conv1), f"conv1.stream_weights.{stream}")


@each_family
def test_the_last_stream_is_missing_but_for_its_traces(family: str) -> None:
    state = without(synthetic_checkpoint(family), r"stream_(weights|biases)\.1$")
    assert_refused(state, "1")


@each_family
def test_a_stream_is_gone_but_for_its_auxiliary_head(family: str) -> None:
    state = synthetic_checkpoint(family)
    gone = r"(?<!fc_streams)\.(stream_\w+|integration_from_streams)\.1$|\.stream1_running"
    assert_refused(without(state, gone), "fc_streams.1")


@pytest.mark.parametrize("family", INTEGRATED_FAMILIES)
@pytest.mark.parametrize("other", INTEGRATED_FAMILIES)
@pytest.mark.parametrize("layer", ["conv1.", "bn1.", "layer3.0.conv1.", "layer3.0.bn1."])
def test_mixed_families(family: str, other: str, layer: str) -> None:
    """One layer of another family; where the two do not differ there, all is well."""
    state, foreign = synthetic_checkpoint(family), synthetic_checkpoint(other)
    aside = {"conv1.integrated_mixing_scalar"}
    own = {key for key in state if key.startswith(layer)} - aside
    new = {key for key in foreign if key.startswith(layer)} - aside
    mixed = {key: t for key, t in state.items() if key not in own | aside}
    mixed |= {key: foreign[key] for key in new}
    if own == new:
        load_original(mixed)
        return
    with pytest.raises(ValueError, match="expected") as caught:
        load_original(mixed)
    assert any(key in str(caught.value) for key in own ^ new)


def test_a_family_that_does_not_exist() -> None:
    state = without(synthetic_checkpoint("direct_mixing_conv"), "integrated_groupnorm")
    linear = synthetic_checkpoint("li_net3")
    state |= {key: t for key, t in linear.items() if re.search(r"(bn\d|downsample\.1)\.integ", key)}
    assert_refused(
        state, "no known family", "stream_mixing_scalars.0", "expected one of li_net3, li_net3_soma"
    )


@each_family
def test_without_any_mixing(family: str) -> None:
    state = without(synthetic_checkpoint(family), "integration_from|mixing_scalar")
    with pytest.raises(ValueError, match="expected"):
        load_original(state)


@each_family
@pytest.mark.parametrize(
    "key",
    [
        "layer1.0.conv1.bias",
        "layer1.0.conv1.weight",
        "layer1.0.conv1.stream_biases.0",
        "classifier.weight",
        "layer5.0.conv1.stream_weights.0",
        "layer1.0.se.fc.weight",
        "conv2.integrated_weight",
    ],
)
def test_keys_of_another_network(family: str, key: str) -> None:
    state = synthetic_checkpoint(family) | {key: torch.zeros(3)}
    assert_refused(state, key)


@each_family
@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("layer1.0.conv1.stream_weights.1", (4, 3, 3, 3), (3, 3, 3, 3)),
        ("layer2.0.bn1.stream_biases.0", (5,), (4,)),
        ("layer2.0.conv1.integrated_weight", (4, 4, 1, 1), (4, 3, 1, 1)),
        ("conv1.stream_weights.1", (3, 1, 5, 5), (3, 1, 7, 7)),
        ("fc.weight", (5, 7), (5, 6)),
        ("fc.bias", (4,), (5,)),
        ("bn1.num_batches_tracked", (1,), ()),
    ],
)
def test_wrong_shapes(
    family: str, key: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    state = synthetic_checkpoint(family) | {key: torch.zeros(shape)}
    assert_refused(state, f"{key} is {shape}, expected {expected}")


@pytest.mark.parametrize(
    "key", ["conv1.stream_weights.0", "layer2.0.conv1.stream_weights.0", "fc.weight"]
)
@pytest.mark.parametrize("shape", [(), (3,), (0,), (0, 0, 0, 0)])
def test_shapes_that_say_nothing_of_the_layout(key: str, shape: tuple[int, ...]) -> None:
    """These are the tensors that widths, streams and classes are read off."""
    with pytest.raises(ValueError, match="expected"):
        load_original(synthetic_checkpoint() | {key: torch.zeros(shape)})


@each_family
@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("conv1.stream_weights.9999", "conv1.stream_weights.2, conv1.stream_weights.3"),
        ("layer1.9.conv1.stream_weights.0", "layer1.1.conv1.stream_weights.0"),
    ],
)
def test_a_gap_in_the_numbers(family: str, key: str, named: str) -> None:
    assert_refused(synthetic_checkpoint(family) | {key: torch.zeros(3, 3, 3, 3)}, "expected", named)


def test_weights_that_are_no_floating_point() -> None:
    state = {key: t.long() for key, t in synthetic_checkpoint().items()}
    with pytest.raises(ValueError, match="float"):
        load_original(state)


def damaged(path: Path, change: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(suffix: str, share: float, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / f"checkpoint.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(synthetic_checkpoint(), path)
    damaged(path, lambda content: content[: int(share * len(content))])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_original(path)
