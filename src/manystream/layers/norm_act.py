"""Norm, residual, activation and pooling of every stream and of the integrated pathway."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manystream.batch import StreamBatch
from manystream.functional import (
    After,
    BatchNormRows,
    Pool,
    Running,
    batch_norm_act,
    batch_statistics,
    group_norm_act,
    lanes,
    remat,
)
from manystream.functional.sync_norm import sync_batch_norm

NormLayer = Callable[[int], nn.Module]
"""Builds a norm from its number of channels, for example ``nn.BatchNorm2d``."""

ActLayer = Callable[[], nn.Module]
"""Builds an activation that keeps no state, for example ``nn.ReLU``."""


class StreamNormAct2d(nn.Module):
    r"""``pool(act(norm(x) + identity))`` of each stream's present rows and the integrated pathway.

    A stream's norm is a stock batch norm on a smaller batch, so its statistics count present
    samples only. Where it would see one value per channel or none, it normalises with its running
    statistics and leaves them as they are.

    Args:
        num_features: channels C.
        num_streams: number of streams M.
        integrated_norm: norm of the integrated pathway, if there is one.
        norm_layer: norm of a stream.
        act_layer: the activation, if one follows.
        pool: max-pool that follows, if any.
        integrated_only: the streams end here, as in the last block: their running statistics
            still move, their parameters are frozen since nothing depends on them, and only the
            integrated pathway is returned.

    Raises:
        ValueError: if a batch norm keeps no running statistics.

    Attributes:
        records: whether the backward pass may rebuild what the layer would keep for it.
        rebuild: whether the backward pass rebuilds the outputs instead of keeping them.
    """

    def __init__(
        self,
        num_features: int,
        num_streams: int,
        integrated_norm: NormLayer | None = nn.BatchNorm2d,
        *,
        norm_layer: NormLayer = nn.BatchNorm2d,
        act_layer: ActLayer | None = nn.ReLU,
        pool: Pool | None = None,
        integrated_only: bool = False,
    ) -> None:
        super().__init__()
        self.streams = nn.ModuleList(norm_layer(num_features) for _ in range(num_streams))
        self.integrated = None if integrated_norm is None else integrated_norm(num_features)
        self.act = None if act_layer is None else act_layer()
        self.pool = pool
        self.integrated_only = integrated_only
        self.records = self.rebuild = False
        for norm in (*self.streams, self.integrated):
            if type(norm) is nn.BatchNorm2d:
                _running(norm)
        if integrated_only:
            self.streams.requires_grad_(False)

    def set_rebuild(self, rebuild: remat.Rebuild) -> None:
        """Rebuild the outputs if it says so."""
        self.records, self.rebuild = any(rebuild), rebuild.norms

    @remat.recorded
    def forward(self, batch: StreamBatch, identity: StreamBatch | None = None) -> StreamBatch:
        """Shapes stay, up to the pool; ``identity`` has the shapes of ``batch``.

        Raises:
            ValueError: if the batch or the residual lacks a pathway that the other has, or the
                channels are not those of the norms.
        """
        if self.integrated_only:
            lanes.each(_move_statistics, self.streams, batch.streams)
            streams: tuple[Tensor, ...] = ()
        else:
            residuals = (None,) * len(batch.streams) if identity is None else identity.streams
            streams = tuple(lanes.each(self._norm_act, self.streams, batch.streams, residuals))
        return batch.with_maps(streams, self._integrated(batch, identity))

    def _integrated(self, batch: StreamBatch, identity: StreamBatch | None) -> Tensor | None:
        z = batch.integrated
        if z is None:
            return None
        if self.integrated is None:
            raise ValueError(
                "the batch has an integrated pathway and this layer no norm for it; give it an "
                "integrated_norm, torch.nn.Identity for none"
            )
        if identity is not None and identity.integrated is None:
            raise ValueError(
                "identity has no integrated pathway and the batch has one; expected a residual "
                "for every pathway"
            )
        return self._norm_act(self.integrated, z, None if identity is None else identity.integrated)

    def _norm_act(self, norm: nn.Module, x: Tensor, residual: Tensor | None) -> Tensor:
        """One operation as far as it knows the modules; what it does not know follows it."""
        knows_act = self.act is None or type(self.act) is nn.ReLU
        after = After(relu=self.act is not None, pool=self.pool) if knows_act else After(False)
        y = self._normalised(norm, x, residual, after)
        if knows_act:
            return y
        assert self.act is not None
        acted: Tensor = self.act(y)
        if self.rebuild:
            remat.register(acted, self.act, y)
        return acted if self.pool is None else F.max_pool2d(acted, *self.pool)

    def _normalised(
        self, norm: nn.Module, x: Tensor, residual: Tensor | None, after: After
    ) -> Tensor:
        if type(norm) is nn.BatchNorm2d:
            return batch_norm_act(
                x,
                [BatchNormRows(slice(0, len(x)), _running(norm), *_affine(norm, x))],
                residual=residual,
                after=after,
                training=norm.training,
                momentum=norm.momentum,
                eps=norm.eps,
                rebuild=self.rebuild,
            )
        if isinstance(norm, nn.GroupNorm):
            return group_norm_act(
                x,
                norm.num_groups,
                *_affine(norm, x),
                residual=residual,
                after=after,
                eps=norm.eps,
                rebuild=self.rebuild,
            )
        # Another norm, SyncBatchNorm for one, is called as it is. It may give what it was given, or
        # what it needs itself: only a sum, or what we know, is ours to change.
        y = norm(x) if residual is None else norm(x) + residual
        if residual is not None or type(norm) is SyncBatchNorm2d:
            return after(y)
        return After(False, after.pool)(F.relu(y) if after.relu else y)


def _move_statistics(norm: nn.Module, x: Tensor) -> None:
    if not norm.training:
        return
    if type(norm) is nn.BatchNorm2d:
        batch_statistics(x, _running(norm), norm.momentum)
    else:
        with torch.no_grad():
            norm(x)


def _running(norm: nn.BatchNorm2d) -> Running:
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise ValueError(
            "a norm keeps no running statistics (track_running_stats=False), with which one value "
            "per channel is normalised; build it with track_running_stats=True"
        )
    return Running(mean, var, norm.num_batches_tracked)


def _affine(norm: nn.BatchNorm2d | nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias; where a norm has none (affine=False), what changes nothing."""
    weight: Tensor | None = norm.weight
    bias: Tensor | None = norm.bias
    if weight is not None and bias is not None:
        return weight, bias
    running = getattr(norm, "running_mean", None)
    like = next(t for t in (weight, bias, running, x) if t is not None)
    channels = x.shape[1]
    return (
        like.new_ones(channels) if weight is None else weight,
        like.new_zeros(channels) if bias is None else bias,
    )


class SyncBatchNorm2d(nn.BatchNorm2d):
    """A batch norm with joint statistics in training; see :func:`sync_batch_norm`.

    Make a network's with :func:`synchronise_norms`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B_r, C, H, W), which stays; B_r may be 0."""
        if not self.training or self.running_mean is None:
            return super().forward(x)
        running = _running(self)
        return sync_batch_norm(x, running, *_affine(self, x), momentum=self.momentum, eps=self.eps)


def synchronise_norms(network: nn.Module) -> None:
    """Have every batch norm of a network count the rows of all processes.

    Without it, each process normalises with its own rows, and the running statistics are those of
    the first process.

    Args:
        network: changed in place; parameters, buffers and their names stay what they are.

    Raises:
        ValueError: if no process group is set up, or a norm keeps no running statistics.
    """
    if not torch.distributed.is_initialized():
        raise ValueError("no process group is set up; call torch.distributed.init_process_group")
    for name, module in network.named_modules():
        if type(module) is nn.BatchNorm2d and module.running_mean is None:
            raise ValueError(
                f"{name} keeps no running statistics (track_running_stats=False), with which "
                "processes that have too few rows normalise; build it with track_running_stats=True"
            )
    _exchange(network, nn.BatchNorm2d, SyncBatchNorm2d)


def separate_norms(network: nn.Module) -> None:
    """Undo :func:`synchronise_norms`."""
    _exchange(network, SyncBatchNorm2d, nn.BatchNorm2d)


def _exchange(network: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    for module in network.modules():
        if type(module) is old:
            module.__class__ = new  # they differ in forward only, so optimizers need not be told
