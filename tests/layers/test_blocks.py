import pytest
import torch
from torch import nn

from manystream.batch import StreamBatch
from manystream.layers import BasicBlock, Bottleneck, LinearIntegration, StreamNormAct2d
from tests.builders import compact_batch, mask_of

WORDS = "11 01 10"
Block = type[BasicBlock] | type[Bottleneck]
both_blocks = pytest.mark.parametrize("block", [BasicBlock, Bottleneck])


def batch_of(channels: int) -> StreamBatch:
    return compact_batch(mask_of(WORDS), channels, integrated_channels=channels)


@both_blocks
@pytest.mark.parametrize(("in_channels", "width", "stride"), [(8, 8, 1), (8, 2, 1), (4, 8, 2)])
def test_shapes(block: Block, in_channels: int, width: int, stride: int) -> None:
    out = block(2, in_channels, width, stride).double()(batch_of(in_channels))
    size = (5, 7) if stride == 1 else (3, 4)
    channels = width if block is BasicBlock else 4 * width
    assert [tuple(y.shape) for y in out.streams] == [(2, channels, *size)] * 2
    assert out.integrated.shape == (3, channels, *size)


@both_blocks
@pytest.mark.parametrize(
    ("in_channels", "out_channels", "stride", "projected"),
    [(8, 8, 1, False), (4, 8, 1, True), (8, 8, 2, True), (4, 8, 2, True)],
)
def test_a_projection_only_where_the_size_changes(
    block: Block, in_channels: int, out_channels: int, stride: int, projected: bool
) -> None:
    shortcut = block(2, in_channels, out_channels // block.expansion, stride).downsample
    assert (shortcut is not None) is projected
    if projected:
        conv, norm = shortcut
        assert [c.kernel_size for c in conv.streams] == [(1, 1)] * 2
        assert [c.stride for c in conv.streams] == [(stride, stride)] * 2
        assert conv.integration.integrated_weight.shape == (out_channels, in_channels, 1, 1)
        assert norm.act is None


def test_where_each_block_strides() -> None:
    basic = BasicBlock(1, 4, 4, stride=2)
    assert [c.streams[0].stride for c in (basic.conv1, basic.conv2)] == [(2, 2), (1, 1)]
    bottleneck = Bottleneck(1, 4, 4, stride=2)
    convs = [bottleneck.conv1, bottleneck.conv2, bottleneck.conv3]
    assert [c.streams[0].stride for c in convs] == [(1, 1), (2, 2), (1, 1)]
    assert [c.streams[0].kernel_size for c in convs] == [(1, 1), (3, 3), (1, 1)]


@both_blocks
def test_every_pathway_has_its_own_residual(block: Block) -> None:
    """With a last norm that gives zero, a block is the ReLU of its input, on each pathway."""
    layer = block(2, 8, 8 // block.expansion).double()
    last = layer.bn2 if block is BasicBlock else layer.bn3
    for norm in (*last.streams, last.integrated):
        nn.init.zeros_(norm.weight)
    batch = batch_of(8)
    out = layer(batch)
    for x, y in zip(
        (*batch.streams, batch.integrated), (*out.streams, out.integrated), strict=True
    ):
        assert torch.equal(y, x.clamp(min=0))


@both_blocks
@pytest.mark.parametrize("in_channels", [8, 4])
def test_after_the_last_block_only_the_integrated_pathway_goes_on(
    block: Block, in_channels: int
) -> None:
    torch.manual_seed(0)
    last = block(2, in_channels, 8 // block.expansion, last=True).double()
    other = block(2, in_channels, 8 // block.expansion).double()
    other.load_state_dict(last.state_dict())
    out, expected = last(batch_of(in_channels)), other(batch_of(in_channels))
    assert out.streams == ()
    assert len(expected.streams) == 2
    torch.testing.assert_close(out.integrated, expected.integrated)
    for (name, buffer), due in zip(last.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, due, msg=name)


@both_blocks
def test_rule_and_norm_are_passed_to_every_layer(block: Block) -> None:
    class OwnRule(LinearIntegration):
        pass

    def own_norm(channels: int) -> nn.Module:
        return nn.GroupNorm(1, channels)

    layer = block(2, 4, 8, 2, integration=OwnRule, integrated_norm=own_norm)
    rules = [m for m in layer.modules() if isinstance(m, LinearIntegration)]
    norms = [m.integrated for m in layer.modules() if isinstance(m, StreamNormAct2d)]
    assert len(rules) == len(norms) == (3 if block is BasicBlock else 4)
    assert all(isinstance(rule, OwnRule) for rule in rules)
    assert all(isinstance(norm, nn.GroupNorm) for norm in norms)
