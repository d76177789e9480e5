from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from manystream.layers import ScalarIntegration, StreamConv2d, StreamNormAct2d
from manystream.streams import StreamBatch
from tests.builders import compact_batch, mask_of, randomise

CHANNELS = 3


def build(**arguments: object) -> StreamNormAct2d:
    torch.manual_seed(0)
    layer = StreamNormAct2d(CHANNELS, 2, **arguments).double()
    randomise(layer)
    return layer


def batch_of(words: str, size: tuple[int, int] = (4, 5), shift: float = 0.0) -> StreamBatch:
    batch = compact_batch(mask_of(words), CHANNELS, size, integrated_channels=CHANNELS)
    return batch.map(lambda x: x + shift)


def normalised(x: Tensor, norm: nn.BatchNorm2d, mean: Tensor, var: Tensor) -> Tensor:
    centred = (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt()
    return centred * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


def batch_normalised(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    values = x.transpose(0, 1).flatten(1)
    return normalised(x, norm, values.mean(dim=1), values.var(dim=1, correction=0))


def statistics(layer: nn.Module) -> dict[str, Tensor]:
    return {n: b.clone() for n, b in layer.named_buffers()}


@pytest.mark.parametrize("words", ["11 11", "11 01 10 11", "01 11 01"])
@pytest.mark.parametrize("activation", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_training_counts_the_present_rows(words: str, activation: bool, residual: bool) -> None:
    layer = build(activation=activation)
    batch, identity = batch_of(words), batch_of(words, shift=0.5)
    out = layer(batch, identity) if residual else layer(batch)
    norms = [*layer.streams, layer.integrated]
    pathways = [(*b.streams, b.integrated) for b in (batch, identity, out)]
    for norm, x, other, y in zip(norms, *pathways, strict=True):
        expected = batch_normalised(x, norm) + (other if residual else 0)
        torch.testing.assert_close(y, expected.clamp(min=0) if activation else expected)
    assert out.presence is batch.presence


@pytest.mark.parametrize("words", ["11 01", "10 10"])
def test_eval_uses_the_running_statistics_and_leaves_them(words: str) -> None:
    layer = build(activation=False).eval()
    before = statistics(layer)
    batch = batch_of(words)
    out = layer(batch)
    for norm, x, y in zip(layer.streams, batch.streams, out.streams, strict=True):
        torch.testing.assert_close(y, normalised(x, norm, norm.running_mean, norm.running_var))
    assert all(torch.equal(b, before[n]) for n, b in layer.named_buffers())


def test_running_statistics_move_by_the_present_rows() -> None:
    layer = build()
    before = statistics(layer)
    batch = batch_of("11 01 01")
    layer(batch)
    for m, x in enumerate(batch.streams):
        values = x.transpose(0, 1).flatten(1)
        for name, moved in [("mean", values.mean(dim=1)), ("var", values.var(dim=1))]:
            due = 0.9 * before[f"streams.{m}.running_{name}"] + 0.1 * moved
            torch.testing.assert_close(getattr(layer.streams[m], f"running_{name}"), due)
        assert layer.streams[m].num_batches_tracked == 1


@pytest.mark.parametrize(
    ("words", "size", "still"),
    [
        ("10 10", (4, 5), ["streams.1"]),
        ("10 10", (1, 1), ["streams.1"]),
        ("11 01 01", (1, 1), ["streams.0"]),
        ("10", (1, 1), ["streams.0", "streams.1", "integrated"]),
        ("10", (1, 2), ["streams.1"]),
    ],
)
def test_one_value_or_none_uses_the_running_statistics(
    words: str, size: tuple[int, int], still: list[str]
) -> None:
    layer = build(activation=False)
    before = statistics(layer)
    batch = batch_of(words, size)
    out = layer(batch)
    pathways = {"integrated": (batch.integrated, out.integrated)}
    for m in (0, 1):
        pathways[f"streams.{m}"] = (batch.streams[m], out.streams[m])
    for name, (x, y) in pathways.items():
        norm = layer.get_submodule(name)
        old = {n: before[f"{name}.{n}"] for n, _ in norm.named_buffers()}
        if name in still:
            assert all(torch.equal(b, old[n]) for n, b in norm.named_buffers()), name
            torch.testing.assert_close(
                y, normalised(x, norm, old["running_mean"], old["running_var"])
            )
        else:
            assert not any(torch.equal(b, old[n]) for n, b in norm.named_buffers()), name
            torch.testing.assert_close(y, batch_normalised(x, norm))


@pytest.mark.parametrize("training", [True, False])
def test_a_stream_without_rows_has_zero_gradients(training: bool) -> None:
    layer = build().train(training)
    out = layer(batch_of("10 10"))
    (sum(y.sum() for y in out.streams) + out.integrated.sum()).backward()
    for parameter in layer.streams[1].parameters():
        assert torch.equal(parameter.grad, torch.zeros(CHANNELS, dtype=torch.float64))
    for parameter in (*layer.streams[0].parameters(), *layer.integrated.parameters()):
        assert parameter.grad.any()


def test_the_integrated_norm_is_an_argument() -> None:
    layer = build(activation=False, integrated_norm=lambda channels: nn.GroupNorm(1, channels))
    batch = batch_of("11 01")
    z = batch.integrated
    centred = z - z.mean(dim=(1, 2, 3), keepdim=True)
    expected = centred / (centred.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-5).sqrt()
    weight, bias = layer.integrated.weight.view(-1, 1, 1), layer.integrated.bias.view(-1, 1, 1)
    torch.testing.assert_close(layer(batch).integrated, expected * weight + bias)
    assert all(isinstance(norm, nn.BatchNorm2d) for norm in layer.streams)


@pytest.mark.parametrize("training", [True, False])
def test_the_inputs_are_left_as_they_were(training: bool) -> None:
    layer = build().train(training)
    batch, identity = batch_of("11 01"), batch_of("11 01", shift=0.5)
    tensors = [x for b in (batch, identity) for x in (*b.streams, b.integrated)]
    copies = [x.clone() for x in tensors]
    layer(batch, identity)
    assert all(torch.equal(x, copy) for x, copy in zip(tensors, copies, strict=True))


def test_integrated_only_moves_the_streams_statistics_and_ends_them() -> None:
    layer, whole = build(integrated_only=True), build()
    batch, identity = batch_of("11 01"), batch_of("11 01", shift=0.5)
    ended = layer(batch, replace(identity, streams=()))
    assert ended.streams == ()
    torch.testing.assert_close(ended.integrated, whole(batch, identity).integrated)
    for (name, buffer), due in zip(layer.named_buffers(), whole.buffers(), strict=True):
        assert torch.equal(buffer, due), name
    assert not any(p.requires_grad for p in layer.streams.parameters())
    assert all(p.requires_grad for p in layer.integrated.parameters())
    after = statistics(layer)
    layer.eval()(batch)
    assert all(torch.equal(b, after[n]) for n, b in layer.named_buffers())


def test_norms_begin_as_the_identity() -> None:
    layer = StreamNormAct2d(CHANNELS, 2)
    for norm in (*layer.streams, layer.integrated):
        assert torch.equal(norm.weight, torch.ones(CHANNELS))
        assert torch.equal(norm.bias, torch.zeros(CHANNELS))
        assert torch.equal(norm.running_mean, torch.zeros(CHANNELS))
        assert torch.equal(norm.running_var, torch.ones(CHANNELS))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ended", [True, False])
def test_another_number_of_channels_is_refused(training: bool, ended: bool) -> None:
    layer = build(integrated_only=ended).train(training)
    before = statistics(layer)
    batch = compact_batch(mask_of("11 01"), 8, integrated_channels=8)
    with pytest.raises(ValueError, match=r"has shape \(3,\) .* build the norm for 8 channels"):
        layer(batch)
    assert all(torch.equal(b, before[n]) for n, b in layer.named_buffers())


def test_a_norm_may_have_no_parameters() -> None:
    for own in (nn.BatchNorm2d(CHANNELS), nn.GroupNorm(1, CHANNELS)):
        layer, batch = build(activation=False), batch_of("11 01 10")
        layer.integrated = own.double()
        for name in ("bias", "weight"):
            own.register_parameter(name, None)
            torch.testing.assert_close(layer(batch).integrated, own(batch.integrated))


def test_running_statistics_may_be_the_mean_of_all_batches() -> None:
    layer = build(integrated_norm=partial(nn.BatchNorm2d, momentum=None))
    layer.streams[0].momentum = None
    stock = deepcopy(layer)
    for words in ("11 01 10", "01 10", "11 11 01"):
        batch = batch_of(words, shift=len(words))
        layer(batch)
        stock.streams[0](batch.streams[0])
        stock.integrated(batch.integrated)
    for name in ("streams.0", "integrated"):
        came, due = layer.get_submodule(name), stock.get_submodule(name)
        assert came.num_batches_tracked == due.num_batches_tracked == 3
        for buffer, expected in zip(came.buffers(), due.buffers(), strict=True):
            torch.testing.assert_close(buffer, expected)


def test_a_norm_without_running_statistics_is_refused() -> None:
    own = partial(nn.BatchNorm2d, track_running_stats=False)
    with pytest.raises(ValueError, match=r"no running statistics \(track_running_stats=False\)"):
        build(integrated_norm=own)
    layer = build()
    layer.streams[1] = own(CHANNELS)
    with pytest.raises(ValueError, match=r"no running statistics \(track_running_stats=False\)"):
        layer(batch_of("11 01"))


def test_an_integrated_pathway_without_a_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"this layer no norm for it; .* torch\.nn\.Identity"):
        build(integrated_norm=None)(batch_of("11 01"))
    batch = batch_of("11 01")
    with pytest.raises(ValueError, match="identity has no integrated pathway"):
        build()(batch, replace(batch, integrated=None))


def test_norms_that_give_what_they_are_given() -> None:
    layer = build(integrated_norm=nn.Identity)
    batch = batch_of("11 01")
    z = batch.integrated.clone()
    assert torch.equal(layer(batch).integrated, z.clamp(min=0))
    assert torch.equal(batch.integrated, z)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, partial(nn.GroupNorm, 1)])
def test_what_a_frozen_convolution_gives_needs_no_gradient(
    norm: Callable[[int], nn.Module],
) -> None:
    conv = StreamConv2d([CHANNELS] * 2, CHANNELS, 1, integration=ScalarIntegration).double()
    layer = build(integrated_norm=norm)
    batch = replace(batch_of("11 01 10"), integrated=None)
    found = []
    for frozen in (False, True):
        out = layer(conv.requires_grad_(not frozen)(batch))
        loss = out.integrated.square().sum() + sum(y.square().sum() for y in out.streams)
        found.append(torch.autograd.grad(loss, list(layer.parameters())))
    torch.testing.assert_close(*found)


@pytest.mark.filterwarnings("ignore")  # of torch's own, where it breaks the graph
@pytest.mark.parametrize("ended", [True, False])
def test_a_compiled_layer_moves_the_same_statistics(ended: bool) -> None:
    layer = build(integrated_only=ended)
    other = deepcopy(layer)
    batch = batch_of("11 01 10")
    compiled = torch.compile(other, backend="aot_eager")
    torch.testing.assert_close(compiled(batch).integrated, layer(batch).integrated)
    torch.compiler.reset()
    for (name, buffer), due in zip(other.named_buffers(), layer.buffers(), strict=True):
        torch.testing.assert_close(buffer, due, msg=name)
