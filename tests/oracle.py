"""Masked execution of a StreamResNet: the slow, plain truth that compact execution must equal.

Written from the equations, naive on purpose. Every stream holds all B rows; absent ones are
multiplied by zero after each convolution; batch norm runs on the gathered present rows and is
scattered back into zeros. The model is only read: parameters, buffers and which modules it has.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manystream.layers import (
    BasicBlock,
    Bottleneck,
    LinearIntegration,
    ScalarIntegration,
    StreamConv2d,
    StreamNormAct2d,
    SubsetNorms,
)
from manystream.models import StreamResNet

EPS = 1e-5
MOMENTUM = 0.1

Pathways = tuple[list[Tensor], Tensor]
"""Each stream with all its rows, and the integrated pathway; all (B, C, H, W)."""


def masked_forward(
    model: StreamResNet, inputs: Sequence[Tensor], present: Tensor, *, training: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and every running statistic as it stands after this forward.

    Args:
        model: whose parameters and buffers to use; left as it is.
        inputs: full batches, (B, C_m, H, W); absent images must be finite, their values are unused.
        present: (B, M), bool.
        training: whether norms use the statistics of the batch and move the running ones.
    """
    return _forward(model, list(inputs), _MaskedRun(present, training))


def forward_by_view(
    model: StreamResNet,
    inputs: Sequence[Tensor],
    present: Tensor,
    seen: Sequence[tuple[int, int]],
    *,
    training: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of samples that are seen with several subsets of their streams; else as the above.

    Each stream runs once over its rows; those of a view are then picked by their numbers.

    Args:
        seen: of each view the number of its sample, and the bits of its streams.
    """
    streams = [x[present[:, m]] for m, x in enumerate(inputs)]
    return _forward(model, streams, _ViewRun(present, seen, training))


def _forward(
    model: StreamResNet, streams: list[Tensor], run: "_MaskedRun"
) -> tuple[Tensor, dict[str, Tensor]]:
    pathways = run.conv(model.conv1, streams, None, stride=2)
    pathways = run.norm(model.bn1, pathways)
    pathways = _each(F.relu, pathways)
    pathways = _each(lambda x: F.max_pool2d(x, 3, 2, 1), pathways)
    for stage in (1, 2, 3, 4):
        for i, block in enumerate(getattr(model, f"layer{stage}")):
            pathways = run.block(block, pathways, stride=2 if stage > 1 and i == 0 else 1)
    features = pathways[1].mean(dim=(2, 3))
    logits = features @ model.fc.weight.t() + model.fc.bias
    return logits, _running_statistics(model, run.moved)


class _MaskedRun:
    """One forward; ``moved`` collects the batch norms whose running statistics it moves."""

    def __init__(self, present: Tensor, training: bool) -> None:
        self.present = present
        self.training = training
        self.moved: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def block(self, block: BasicBlock | Bottleneck, pathways: Pathways, stride: int) -> Pathways:
        if hasattr(block, "conv3"):
            out = self.conv(block.conv1, *pathways, stride=1)
            out = _each(F.relu, self.norm(block.bn1, out))
            out = self.conv(block.conv2, *out, stride=stride)
            out = _each(F.relu, self.norm(block.bn2, out))
            out = self.norm(block.bn3, self.conv(block.conv3, *out, stride=1))
        else:
            out = self.conv(block.conv1, *pathways, stride=stride)
            out = _each(F.relu, self.norm(block.bn1, out))
            out = self.norm(block.bn2, self.conv(block.conv2, *out, stride=1))
        identity = pathways
        if block.downsample is not None:
            conv, norm = block.downsample
            identity = self.norm(norm, self.conv(conv, *pathways, stride=stride))
        streams = [F.relu(y + x) for y, x in zip(out[0], identity[0], strict=True)]
        return streams, F.relu(out[1] + identity[1])

    def conv(
        self, layer: StreamConv2d, streams: list[Tensor], integrated: Tensor | None, stride: int
    ) -> Pathways:
        raw = []
        for m, x in enumerate(streams):
            weight = layer.streams[m].weight
            y = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
            raw.append(self.seen_by_layers(m, y))
        return raw, self.integrate(layer.integration, raw, integrated, stride)

    def seen_by_layers(self, stream: int, raw: Tensor) -> Tensor:
        return raw * self.present[:, stream].to(raw.dtype).view(-1, 1, 1, 1)

    def placed(self, stream: int, mixed: Tensor) -> Tensor:
        return mixed

    def integrate(
        self, rule: nn.Module, raw: list[Tensor], integrated: Tensor | None, stride: int
    ) -> Tensor:
        if isinstance(rule, LinearIntegration):
            mixed, scale = [F.conv2d(y, rule.stream_weights[m]) for m, y in enumerate(raw)], 1.0
        elif isinstance(rule, ScalarIntegration):
            mixed = [rule.stream_scalars[m] * y for m, y in enumerate(raw)]
            scale = rule.integrated_scalar
        else:
            raise NotImplementedError(f"the oracle does not know {type(rule).__name__}")
        mixed = [self.placed(m, y) for m, y in enumerate(mixed)]
        if integrated is not None:
            mixed.append(scale * F.conv2d(integrated, rule.integrated_weight, stride=stride))
        return torch.stack(mixed).sum(dim=0)

    def norm(self, layer: StreamNormAct2d, pathways: Pathways) -> Pathways:
        streams = []
        for m, x in enumerate(pathways[0]):
            rows = self.present[:, m].nonzero().flatten()
            y = self.batch_norm(layer.streams[m], x[rows])
            streams.append(torch.zeros_like(x).index_copy(0, rows, y))
        return streams, self.integrated_norm(layer.integrated, pathways[1])

    def integrated_norm(self, norm: nn.Module, x: Tensor) -> Tensor:
        if isinstance(norm, nn.BatchNorm2d):
            return self.batch_norm(norm, x)
        if isinstance(norm, nn.GroupNorm) and norm.num_groups == 1:
            mean = x.mean(dim=(1, 2, 3), keepdim=True)
            var = ((x - mean) ** 2).mean(dim=(1, 2, 3), keepdim=True)
            return _affine(norm, (x - mean) / (var + EPS).sqrt())
        raise NotImplementedError(f"the oracle does not know {norm}")

    def batch_norm(self, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
        count = x.shape[0] * x.shape[2] * x.shape[3]
        mean, var = norm.running_mean, norm.running_var
        if self.training and count > 1:
            mean = x.sum(dim=(0, 2, 3)) / count
            squares = ((x - mean.view(-1, 1, 1)) ** 2).sum(dim=(0, 2, 3))
            var = squares / count
            self.moved[norm] = (
                (1 - MOMENTUM) * norm.running_mean + MOMENTUM * mean.detach(),
                (1 - MOMENTUM) * norm.running_var + MOMENTUM * squares.detach() / (count - 1),
            )
        return _affine(norm, (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + EPS).sqrt())


class _ViewRun(_MaskedRun):
    """One forward in which the integrated pathway has a row for each view."""

    def __init__(self, present: Tensor, seen: Sequence[tuple[int, int]], training: bool) -> None:
        super().__init__(present, training)
        self.sample = torch.tensor([sample for sample, _ in seen])
        self.subset = torch.tensor([subset for _, subset in seen])

    def seen_by_layers(self, stream: int, raw: Tensor) -> Tensor:
        return raw

    def placed(self, stream: int, mixed: Tensor) -> Tensor:
        has = (self.subset >> stream & 1).bool().nonzero().flatten()
        row = self.present[:, stream].cumsum(0) - 1
        picked = mixed.index_select(0, row[self.sample[has]])
        return mixed.new_zeros(len(self.sample), *mixed.shape[1:]).index_copy(0, has, picked)

    def norm(self, layer: StreamNormAct2d, pathways: Pathways) -> Pathways:
        streams = [
            self.batch_norm(norm, x) for norm, x in zip(layer.streams, pathways[0], strict=True)
        ]
        return streams, self.integrated_norm(layer.integrated, pathways[1])

    def integrated_norm(self, norm: nn.Module, x: Tensor) -> Tensor:
        if not isinstance(norm, SubsetNorms):
            return super().integrated_norm(norm, x)
        y = torch.zeros_like(x)
        for subset in self.subset.unique().tolist():
            rows = (self.subset == subset).nonzero().flatten()
            name = "_".join(str(m) for m in range(self.present.shape[1]) if subset >> m & 1)
            own = self.batch_norm(getattr(norm, name), x.index_select(0, rows))
            y = y.index_copy(0, rows, own)
        return y


def _each(function, pathways: Pathways) -> Pathways:
    return [function(x) for x in pathways[0]], function(pathways[1])


def _affine(norm: nn.Module, x: Tensor) -> Tensor:
    return x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


def _running_statistics(
    model: nn.Module, moved: dict[nn.Module, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    statistics = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            mean, var = moved.get(module, (module.running_mean, module.running_var))
            statistics[f"{name}.running_mean"] = mean.clone()
            statistics[f"{name}.running_var"] = var.clone()
    return statistics
