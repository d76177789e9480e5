"""The networks that users compare with, against plain ResNets and what is filled in by hand."""

import copy
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from manystream import create_model
from manystream.batch import StreamBatch
from manystream.evaluation import answers_by_subset
from manystream.models import Ensemble, FilledNetwork, StreamResNet, mean_images
from manystream.presence import Presence
from tests.builders import (
    CHANNELS,
    WIDTHS,
    mask_of,
    presences,
    random_images,
    randomise,
    small_resnet,
    with_absent,
)
from tests.models.plain_resnet import PlainResNet

SIZE = (37, 43)

each_block = pytest.mark.parametrize("block", ["basic", "bottleneck"])
each_mode = pytest.mark.parametrize("training", [True, False])
each_presence = pytest.mark.parametrize(
    "words", ["11 11 11", "11 10 01 11", "10 10 10", "01 01", "110 101 011 010", "1 1 1"]
)


@pytest.mark.parametrize("streams", [{"rgb": 3, "depth": 1}, [3, 1, 1]])
def test_a_single_stream_network_refuses_more(streams: Sequence[int]) -> None:
    with pytest.raises(ValueError, match="family 'single_stream' has one stream; these are"):
        create_model("single_stream", streams=streams, num_classes=5)
    assert create_model("single_stream", streams={"rgb": 3}, num_classes=5, width=1 / 16)


def plain_copy(network: StreamResNet, block: str, number: int, channels: int) -> PlainResNet:
    """A plain ResNet with the weights of one of a network's streams, and a head of its own."""
    plain = PlainResNet(block, (1, 1, 1, 1), WIDTHS, channels, 5).double()
    plain.load_state_dict(
        {
            key.replace(f".streams.{number}.", "."): tensor
            for key, tensor in network.state_dict().items()
            if f".streams.{number}." in key
        }
        | {f"fc.{key}": tensor for key, tensor in plain.fc.state_dict().items()}
    )
    return plain.train(network.training)


def assert_statistics(network: StreamResNet, plain: PlainResNet, number: int) -> None:
    after = network.state_dict()
    for key, buffer in plain.named_buffers():
        module, tensor = key.rsplit(".", 1)
        ours = after[f"{module}.streams.{number}.{tensor}"]
        torch.testing.assert_close(ours, buffer, rtol=1e-10, atol=1e-12, msg=key)


@each_presence
@each_mode
@each_block
def test_early_fusion_is_a_resnet_of_joined_images(block: str, training: bool, words: str) -> None:
    """Absent images are zero there."""
    mask = mask_of(words)
    network = small_resnet(mask.shape[1], block, family="early_fusion").train(training)
    plain = plain_copy(network, block, 0, sum(CHANNELS[: mask.shape[1]]))
    plain.fc.load_state_dict(network.fc.state_dict())
    images = random_images(mask, size=SIZE)
    logits = network(with_absent(images, mask, math.nan), present=mask)
    expected = plain(torch.cat(with_absent(images, mask, 0.0), dim=1))
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    assert_statistics(network, plain, 0)


@each_presence
@each_mode
@each_block
def test_late_fusion_joins_the_features_of_resnets(block: str, training: bool, words: str) -> None:
    """Of each sample's own streams; absent features are zero."""
    mask = mask_of(words)
    network = small_resnet(mask.shape[1], block, family="late_fusion").train(training)
    images = random_images(mask, size=SIZE)
    plains, features = [], []
    for m, x in enumerate(images):
        plain = plain_copy(network, block, m, CHANNELS[m])
        width = plain.fc.in_features
        placed = torch.zeros(len(mask), width, dtype=torch.float64)
        if mask[:, m].any():
            placed[mask[:, m]] = plain.features(x[mask[:, m]])
        plains.append(plain)
        features.append(placed)
    logits = network(with_absent(images, mask, math.nan), present=mask)
    expected = F.linear(torch.cat(features, dim=1), network.fc.weight, network.fc.bias)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    for m, plain in enumerate(plains):
        assert_statistics(network, plain, m)


@pytest.mark.parametrize("words", ["10 10 10", "01 01"])
def test_a_stream_that_no_sample_has_gets_zero_gradients_in_late_fusion(words: str) -> None:
    network = small_resnet(family="late_fusion")
    mask = mask_of(words)
    target = torch.arange(len(mask))
    F.cross_entropy(network(random_images(mask, size=SIZE), mask), target).backward()
    absent = [m for m in range(2) if not mask[:, m].any()]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        if f".streams.{absent[0]}." in name:
            assert not parameter.grad.any(), name


FILL_SIZE = (33, 41)


def fill_of(num_streams: int, *, one_value: bool = False) -> dict[str, Tensor]:
    """Something else than zero for each stream of a small network."""
    size = (1, 1) if one_value else FILL_SIZE
    generator = torch.Generator().manual_seed(3)
    return {
        str(m): torch.randn(CHANNELS[m], *size, dtype=torch.float64, generator=generator)
        for m in range(num_streams)
    }


def filled_by_hand(images: Sequence[Tensor], mask: Tensor, fill: dict[str, Tensor]) -> list[Tensor]:
    """Full batches in which one image after the other is replaced where it is absent."""
    return [
        torch.stack(
            [x[b] if mask[b, m] else fill[str(m)].expand_as(x[b]) for b in range(len(mask))]
        )
        for m, x in enumerate(images)
    ]


def assert_same_gradients(network: torch.nn.Module, expected: torch.nn.Module) -> None:
    named = dict(network.named_parameters())
    for name, parameter in expected.named_parameters():
        gradient = named[name].grad
        assert (gradient is None) == (parameter.grad is None), name  # the last norms are not read
        if gradient is not None:
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-12)


@settings(max_examples=20)
@given(
    words=presences(max_streams=3),
    family=st.sampled_from(("li_net3", "li_net3_soma", "late_fusion", "early_fusion")),
    training=st.booleans(),
    one_value=st.booleans(),
)
@example("10 10 10", "li_net3", True, False)
@example("01 11 01 10", "late_fusion", True, True)
def test_a_filled_network_is_the_network_called_on_images_filled_by_hand(
    words: str, family: str, training: bool, one_value: bool
) -> None:
    """Logits, gradients of every parameter, and running statistics."""
    mask = mask_of(words)
    inner = small_resnet(mask.shape[1], family=family).train(training)
    fill, images = fill_of(mask.shape[1], one_value=one_value), random_images(mask)
    expected = copy.deepcopy(inner)
    network = FilledNetwork(inner, fill).train(training)
    target = torch.arange(len(mask)) % 5
    by_hand = expected(filled_by_hand(images, mask, fill))
    logits = network(with_absent(images, mask, math.nan), present=mask)
    torch.testing.assert_close(logits, by_hand, rtol=1e-10, atol=1e-12)
    F.cross_entropy(by_hand, target).backward()
    F.cross_entropy(logits, target).backward()
    assert_same_gradients(inner, expected)
    after = dict(inner.named_buffers())
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(after[name], buffer, rtol=1e-10, atol=1e-12)


@settings(max_examples=20)
@given(words=presences(max_streams=3))
@example("10 01")
@torch.no_grad()
def test_a_filled_network_answers_for_every_subset(words: str) -> None:
    mask = mask_of(words)
    inner = small_resnet(mask.shape[1]).eval()
    fill, images = fill_of(mask.shape[1]), random_images(mask)
    network = FilledNetwork(inner, fill).eval()
    found = answers_by_subset(network, network.to_batch(images, mask))
    assert sum(len(samples) for _, samples in found.values()) == (2 ** mask.sum(1) - 1).sum()
    for subset, (output, samples) in found.items():
        kept = torch.tensor([bool(subset >> m & 1) for m in range(mask.shape[1])])
        some = [x[samples] for x in images]
        by_hand = inner(filled_by_hand(some, kept.expand(len(samples), -1), fill))
        torch.testing.assert_close(output, by_hand, rtol=1e-10, atol=1e-12)


def test_an_absent_image_that_is_filled_in_gets_no_gradient() -> None:
    mask = mask_of("11 10 01")
    network = FilledNetwork(small_resnet(), fill_of(2))
    images = [x.requires_grad_() for x in random_images(mask)]
    network(images, mask).square().sum().backward()
    for m, x in enumerate(images):
        assert (x.grad.flatten(1).abs().sum(1) > 0).tolist() == mask[:, m].tolist()


def test_what_fills_in_is_kept_in_the_state_and_not_trained() -> None:
    network = FilledNetwork(small_resnet(), fill_of(2))
    assert {"fill_0", "fill_1"} <= network.state_dict().keys()
    assert not any("fill" in name for name, _ in network.named_parameters())
    network.memory = "lean"
    assert network.memory == "lean"


def test_a_batch_without_samples_has_no_answers() -> None:
    empty = StreamBatch(
        tuple(torch.zeros(0, c, 33, 41, dtype=torch.float64) for c in (3, 1)),
        Presence.all_present(0, 2),
    )
    assert FilledNetwork(small_resnet(), fill_of(2))(empty).shape == (0, 5)
    assert Ensemble(members(2))(empty).shape == (0, 5)


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        ({"0": torch.zeros(3, 1, 1)}, "fill is of streams 0; the network's streams are 0, 1"),
        (
            {"0": torch.zeros(3, 1, 1), "1": torch.zeros(3, 1, 1)},
            r"fill of stream '1' has shape \(3, 1, 1\); expected \(1, H, W\), or \(1, 1, 1\)",
        ),
        (
            {"0": torch.zeros(3), "1": torch.zeros(1, 1, 1)},
            r"fill of stream '0' has shape \(3,\); expected \(3, H, W\)",
        ),
    ],
)
def test_a_fill_that_does_not_fit_is_refused(fill: dict[str, Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FilledNetwork(small_resnet(), fill)


def test_images_of_another_size_than_the_fill_are_refused() -> None:
    mask = mask_of("11 10")
    network = FilledNetwork(small_resnet(), fill_of(2))
    with pytest.raises(ValueError, match=r"images of stream '0' are \(37, 43\), and .* \(33, 41\)"):
        network(random_images(mask, size=SIZE), mask)


def members(num_streams: int) -> list[StreamResNet]:
    """A network for each stream, each with weights of its own."""
    networks = []
    for m in range(num_streams):
        network = StreamResNet(
            family="single_stream",
            layers=(1, 1, 1, 1),
            widths=WIDTHS,
            in_channels={str(m): CHANNELS[m]},
            num_classes=5,
        ).double()
        randomise(network)
        networks.append(network)
    return networks


def mean_probabilities(
    networks: Sequence[StreamResNet], images: Sequence[Tensor], mask: Tensor
) -> Tensor:
    """Each network asked about its own images, then sample by sample the mean, (B, 5)."""
    answers = {}
    for m, network in enumerate(networks):
        rows = mask[:, m].nonzero().flatten().tolist()
        if rows:
            probabilities = network([images[m][rows]]).softmax(dim=1)
            answers.update({(b, m): p for b, p in zip(rows, probabilities, strict=True)})
    return torch.stack(
        [
            torch.stack([answers[b, m] for m in range(len(networks)) if mask[b, m]]).mean(dim=0)
            for b in range(len(mask))
        ]
    )


@settings(max_examples=20)
@given(words=presences(max_streams=3), training=st.booleans())
@example("10 10", True)
@example("01 11 01 10", True)
def test_an_ensemble_is_the_mean_of_the_single_networks_probabilities(
    words: str, training: bool
) -> None:
    """And so are its gradients; those of a network whose stream nobody has are zero."""
    mask = mask_of(words)
    images = random_images(mask)
    networks = members(mask.shape[1])
    expected = copy.deepcopy(networks)
    ensemble = Ensemble(networks).train(training)
    for network in expected:
        network.train(training)
    logits = ensemble(with_absent(images, mask, math.nan), present=mask)
    by_hand = mean_probabilities(expected, images, mask)
    torch.testing.assert_close(logits.softmax(dim=1), by_hand, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(logits, by_hand.log(), rtol=1e-10, atol=1e-10)
    target = torch.arange(len(mask)) % 5
    F.cross_entropy(logits, target).backward()
    F.nll_loss(by_hand.log(), target).backward()
    for m, (network, alone) in enumerate(zip(networks, expected, strict=True)):
        if mask[:, m].any():
            assert_same_gradients(network, alone)
        else:
            for name, parameter in network.named_parameters():
                assert parameter.grad is not None, name
                assert not parameter.grad.any(), name


@settings(max_examples=20)
@given(words=presences(max_streams=3))
@example("10 01")
@torch.no_grad()
def test_an_ensemble_answers_for_every_subset(words: str) -> None:
    mask = mask_of(words)
    images, ensemble = random_images(mask), Ensemble(members(mask.shape[1])).eval()
    found = answers_by_subset(ensemble, ensemble.to_batch(images, mask))
    assert sum(len(samples) for _, samples in found.values()) == (2 ** mask.sum(1) - 1).sum()
    for subset, (output, samples) in found.items():
        kept = torch.tensor([bool(subset >> m & 1) for m in range(mask.shape[1])])
        by_hand = mean_probabilities(
            list(ensemble.streams), [x[samples] for x in images], kept.expand(len(samples), -1)
        )
        torch.testing.assert_close(output.exp(), by_hand, rtol=1e-10, atol=1e-12)


def test_a_certain_wrong_answer_has_a_finite_loss() -> None:
    """A probability below what float32 holds is not taken the logarithm of."""
    networks = [network.float() for network in members(2)]
    with torch.no_grad():
        for network in networks:
            network.fc.bias.copy_(torch.tensor([500.0, 0, 0, 0, 0]))
    logits = Ensemble(networks)([torch.zeros(1, c, 33, 41) for c in (3, 1)])
    assert 300 < F.cross_entropy(logits, torch.tensor([1])) < 700


@pytest.mark.parametrize(
    ("networks", "said"),
    [
        ([], "the networks' streams are none; expected one or more networks of one stream each"),
        ([small_resnet(2)], "streams are 0, 1; expected one or more networks of one stream each"),
        (members(1) * 2, "streams are 0, 0; expected .* all of different streams"),
    ],
)
def test_an_ensemble_of_other_networks_is_refused(networks: list[StreamResNet], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Ensemble(networks)


def test_an_ensemble_of_networks_of_other_classes_is_refused() -> None:
    more = StreamResNet(widths=WIDTHS, in_channels={"other": 1}, num_classes=7)
    with pytest.raises(ValueError, match=r"the networks have \[5, 7\] classes; expected the same"):
        Ensemble([*members(1), more])


def test_mean_images_count_what_is_there() -> None:
    batches = [mask_of("11 10 01"), mask_of("10"), mask_of("11 11")]
    images = [random_images(mask, seed=seed) for seed, mask in enumerate(batches)]
    loader = [
        {"0": x, "1": y, "present": mask}
        for (x, y), mask in zip(
            (with_absent(of, mask, math.nan) for of, mask in zip(images, batches, strict=True)),
            batches,
            strict=True,
        )
    ]
    found = mean_images(loader, {"0": 3, "1": 1})
    for m in range(2):
        there = torch.cat([of[m][mask[:, m]] for of, mask in zip(images, batches, strict=True)])
        assert found[str(m)].dtype == torch.float32
        torch.testing.assert_close(found[str(m)], there.mean(dim=0).float(), rtol=1e-5, atol=1e-6)


def test_a_stream_without_images_has_no_mean() -> None:
    with pytest.raises(ValueError, match="the loader has no image of 1; expected one or more"):
        mean_images([{"0": torch.zeros(2, 3, 8, 8)}], {"0": 3, "1": 1})
