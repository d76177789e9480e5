"""Norms of :mod:`.norm_act` by Triton kernels; imported only where there are some."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from manystream.functional._after import After, Gradients
from manystream.functional.kernels.norm import norm_relu, norm_relu_backward
from manystream.functional.kernels.pool import norm_relu_pool, norm_relu_pool_backward


@dataclass(frozen=True)
class FusedBatchNorm:
    """Batch norm with statistics already taken; a pool comes with no residual here."""

    mean: Tensor
    var: Tensor
    eps: float
    training: bool

    def needs_y(self, after: After, residual: Tensor | None) -> bool:
        """Where ReLU cut follows from x, unless a residual had its say."""
        return after.relu and residual is not None

    def forward(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, after: After
    ) -> Tensor:
        how = (self.mean, self.var, weight, bias, self.eps, after.relu)
        y: Tensor
        if after.pool is None:
            y = norm_relu(x, residual, *how)
        else:
            y = norm_relu_pool(x, *how, *after.pool)
        return y

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        residual: Tensor | None,
        y: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        after: After,
        needs: list[bool],
    ) -> Gradients:
        how = (self.mean, self.var, weight, bias, self.eps, after.relu, self.training)
        if after.pool is not None:
            grad_x, *grads = norm_relu_pool_backward(grad, x, *how, *after.pool)
            return grad_x, None, *grads
        grad_x, cut, *grads = norm_relu_backward(grad, x, y, *how)
        grad_residual = cut if after.relu else grad
        return grad_x, grad_residual if needs[1] else None, *grads
