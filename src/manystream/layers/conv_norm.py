"""A convolution and the norm behind it, called as one: nobody else sees the raw outputs."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from manystream.layers.conv import StreamConv2d
from manystream.layers.integration import LinearIntegration, ScalarIntegration
from manystream.layers.norm_act import StreamNormAct2d
from manystream.layers.sync_norm import SyncBatchNorm2d
from manystream.streams import StreamBatch


def conv_norm_act(
    conv: nn.Module,
    norm: nn.Module,
    batch: StreamBatch,
    identity: StreamBatch | None = None,
) -> StreamBatch:
    """``norm(conv(batch), identity)``, in one map less per stream where that is safe.

    The gradient that a norm gives its input is a new tensor, to which the integration may add its
    own in place if nobody else holds it. That is known here alone, and only of our own modules,
    whose hooks would see the raw outputs or their gradients.

    Args:
        conv: a :class:`StreamConv2d`, or what a user put in its place.
        norm: a :class:`StreamNormAct2d`, or what a user put in its place.
        batch: as the convolution takes it.
        identity: the residual, as the norm takes it.
    """
    out: StreamBatch = conv(batch, _norm_alone=True) if _norm_alone(conv, norm) else conv(batch)
    result: StreamBatch = norm(out) if identity is None else norm(out, identity)
    return result


class ConvNorm(nn.Sequential):
    """A Sequential of a convolution and its norm, called as one."""

    def forward(self, batch: StreamBatch) -> StreamBatch:
        """Shapes as the two modules'."""
        if len(self) == 2:
            return conv_norm_act(self[0], self[1], batch)
        result: StreamBatch = super().forward(batch)  # a user has added or taken one
        return result


def _norm_alone(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether the norm alone sees the raw outputs, and gives each of them a gradient of its own."""
    if type(conv) is not StreamConv2d or type(norm) is not StreamNormAct2d:
        return False
    rule = conv.integration
    return (
        rule is not None
        and type(rule) in (LinearIntegration, ScalarIntegration)
        and not any(map(_shows_output, (conv, rule, norm)))
        and not norm._forward_pre_hooks
        and all(map(_gives_own_gradient, norm.streams))
        and not _has_any_global_hook()
    )


def _gives_own_gradient(norm: nn.Module) -> bool:
    # An identity, for one, passes on the gradient that it gets.
    return type(norm) is nn.BatchNorm2d or (
        type(norm) is SyncBatchNorm2d and not (norm._forward_pre_hooks or _shows_output(norm))
    )


def _shows_output(module: nn.Module) -> bool:
    """Whether hooks see what a module gives (and takes), or gradients of that."""
    return bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)
