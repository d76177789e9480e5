"""Norm, residual, activation and pooling of every stream and of the integrated pathway."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

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
from manystream.presence import Group, gray_rank

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
        for norm in self.modules():
            if type(norm) is nn.BatchNorm2d:
                _running(norm)
        if integrated_only:
            self.streams.requires_grad_(False)

    def set_rebuild(self, rebuild: remat.Rebuild) -> None:
        """Rebuild the outputs if it says so."""
        self.records, self.rebuild = any(rebuild), rebuild.norms

    @remat.recorded
    def forward(self, batch: StreamBatch, identity: StreamBatch | None = None) -> StreamBatch:
        """Keep shapes, up to the pool; ``identity`` has the shapes of ``batch``.

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
        residual = None if identity is None else identity.integrated
        norms: Sequence[_NormRows] = [(self.integrated, slice(0, len(z)))]
        if isinstance(self.integrated, SubsetNorms):
            norms = self.integrated.of(batch.views.groups)
        return self._norms_act(norms, z, residual)

    def _norm_act(self, norm: nn.Module, x: Tensor, residual: Tensor | None) -> Tensor:
        return self._norms_act([(norm, slice(0, len(x)))], x, residual)

    def _norms_act(self, norms: Sequence[_NormRows], x: Tensor, residual: Tensor | None) -> Tensor:
        """Run one operation as far as it knows the modules; what it does not know follows it."""
        knows_act = self.act is None or type(self.act) is nn.ReLU
        after = After(relu=self.act is not None, pool=self.pool) if knows_act else After(False)
        y = self._normalised(norms, x, residual, after)
        if knows_act:
            return y
        assert self.act is not None
        acted: Tensor = self.act(y)
        if self.rebuild:
            remat.register(acted, self.act, y)
        return acted if self.pool is None else F.max_pool2d(acted, *self.pool)

    def _normalised(
        self, norms: Sequence[_NormRows], x: Tensor, residual: Tensor | None, after: After
    ) -> Tensor:
        norm: Any = norms[0][0]  # they are alike
        joint = type(norm) is SyncBatchNorm2d
        if type(norm) is nn.BatchNorm2d or (joint and len(norms) > 1 and not norm.training):
            return batch_norm_act(
                x,
                _rows_of(norms, x),
                residual=residual,
                after=after,
                training=norm.training,
                momentum=norm.momentum,
                eps=norm.eps,
                rebuild=self.rebuild,
            )
        if isinstance(norm, nn.GroupNorm) and len(norms) == 1:
            return group_norm_act(
                x,
                norm.num_groups,
                *_affine(norm, x),
                residual=residual,
                after=after,
                eps=norm.eps,
                rebuild=self.rebuild,
            )
        if joint and len(norms) > 1:
            y = sync_batch_norm(x, _rows_of(norms, x), momentum=norm.momentum, eps=norm.eps)
        else:
            y = _each_called(norms, x)  # another norm is called as it is
        # It may give what it was given, or what it needs itself: only a sum, or what we know, is
        # ours to change.
        y = y if residual is None else y + residual
        if residual is not None or joint:
            return after(y)
        return After(False, after.pool)(F.relu(y) if after.relu else y)


class SubsetNorms(nn.Module):
    """A batch norm of the integrated pathway for every subset of the streams.

    The statistics of the integrated pathway differ from subset to subset. Each subset has weight,
    bias and statistics of its own, in a module that is named by the numbers of its streams, for
    example ``"0_2"``. One that no training batch had is answered for by the smallest subset that
    contains it and was seen, or else by all streams together. The state dict of one batch norm is
    taken into all.

    Args:
        num_features: channels C.
        num_streams: number of streams M, up to 8.
        norm_layer: builds a batch norm.

    Raises:
        ValueError: if there are more streams than that.

    Source:
        Yu et al., "Slimmable Neural Networks", 2019, which switches batch norms by width.

    Example:
        >>> norms = SubsetNorms(4, num_streams=2)
        >>> [name for name, _ in norms.named_children()]
        ['0', '0_1', '1']
    """

    def __init__(
        self, num_features: int, num_streams: int, norm_layer: NormLayer = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        if num_streams > _MOST_STREAMS:
            raise ValueError(
                f"a norm for every subset of {num_streams} streams would be "
                f"{2**num_streams - 1}; expected up to {_MOST_STREAMS} streams"
            )
        self._names = {
            subset: "_".join(str(m) for m in range(num_streams) if subset >> m & 1)
            for subset in sorted(range(1, 1 << num_streams), key=gray_rank)
        }
        for name in self._names.values():
            self.add_module(name, norm_layer(num_features))
        self._known: tuple[list[tuple[Tensor, int]], set[int]] = ([], set())

    def of(self, groups: Sequence[Group]) -> list[_NormRows]:
        """Give each group's norm and views; in training also norms without any, for their zeros."""
        if not any(norm.training for norm in self.children()):  # evaluation, or frozen ones
            groups = groups or [Group(max(self._names), slice(0, 0))]  # a batch of no samples
            return [(self._seen_for(group.subset), group.views) for group in groups]
        views_of, norms, position = dict(groups), list[_NormRows](), 0
        for subset in self._names:  # in one order in all processes, which groups have too
            views = views_of.get(subset, slice(position, position))
            norms.append((self._norm(subset), views))
            position = views.stop
        return norms

    def _norm(self, subset: int) -> nn.Module:
        return self.get_submodule(self._names[subset])

    def _seen_for(self, subset: int) -> nn.Module:
        seen = self._seen()
        containing = [s for s in seen if subset & ~s == 0]
        return self._norm(
            min(containing, key=lambda s: (s.bit_count(), s), default=max(self._names))
        )

    def _seen(self) -> set[int]:
        """Return the subsets whose statistics have moved, read anew where they may have."""
        counts = [cast(Tensor, norm.num_batches_tracked) for norm in self.children()]
        known, seen = self._known
        if not known or not all(map(_is_unchanged, counts, known)):
            moved = torch.stack(counts).tolist()
            seen = {s for s, n in zip(self._names, moved, strict=True) if n > 0}
            # Tensors that are held leave their address to no other; inference counts no versions.
            unsure = any(count.is_inference() for count in counts)
            self._known = [] if unsure else [(count, count._version) for count in counts], seen
        return seen

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            if f"{prefix}{key}" in state_dict:
                value = state_dict.pop(f"{prefix}{key}")
                for name in self._names.values():
                    # A copy for each, which load_state_dict(assign=True) takes as it is.
                    state_dict[f"{prefix}{name}.{key}"] = value.detach().clone()
        super()._load_from_state_dict(state_dict, prefix, *arguments)


_MOST_STREAMS = 8


def _is_unchanged(tensor: Tensor, known: tuple[Tensor, int]) -> bool:
    """Tell whether this is the known tensor, in the version that was read."""
    return tensor is known[0] and tensor._version == known[1]


_NormRows = tuple[nn.Module, slice]
"""A norm, and the rows that it normalises."""


def _rows_of(norms: Sequence[_NormRows], x: Tensor) -> list[BatchNormRows]:
    return [
        BatchNormRows(rows, _running(norm), *_affine(norm, x))
        for norm, rows in cast(Sequence[tuple[nn.BatchNorm2d, slice]], norms)
    ]


def _each_called(norms: Sequence[_NormRows], x: Tensor) -> Tensor:
    """Call norms that we know nothing of on their rows.

    Raises:
        ValueError: if one of several would wait for other processes, which may pass it over.
    """
    if len(norms) == 1:
        y: Tensor = norms[0][0](x)
        return y
    if isinstance(norms[0][0], nn.SyncBatchNorm):
        raise ValueError(
            "a norm per subset is torch.nn.SyncBatchNorm, which hangs where a process lacks a "
            "subset; use nn.BatchNorm2d, and manystream.layers.synchronise_norms for joint ones"
        )
    return torch.cat([_called(norm, x[rows]) for norm, rows in norms])


def _called(norm: nn.Module, x: Tensor) -> Tensor:
    """Call a norm; without rows it is not called, and its gradients are zero."""
    y: Tensor = norm(x) if len(x) else x + sum(p.sum() for p in norm.parameters())
    return y


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
        """Normalise, shape (B_r, C, H, W), which stays; B_r may be 0."""
        if not self.training or self.running_mean is None:
            return super().forward(x)
        rows = _rows_of([(self, slice(0, len(x)))], x)
        return sync_batch_norm(x, rows, momentum=self.momentum, eps=self.eps)


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
