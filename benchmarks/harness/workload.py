"""A network of a case, its optimizer and noise for its images: training steps to measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

import manystream as ms
from harness.baselines import BASELINES
from harness.cases import NUM_CLASSES, Case, network_of
from manystream import StreamBatch, StreamResNet
from manystream.models.memory_modes import MemoryMode
from manystream.presence import Presence, Views
from manystream.tasks import StepLoss, forward_and_loss

Loss = Callable[[], Tensor]
"""Runs a forward pass and returns its loss."""

_WARM_UP = {"cuda": 4, "cpu": 1}  # of ours in graphs: eager, captured, replayed


class Workload:
    """Training steps of a case.

    Args:
        case: what is to be measured.

    Attributes:
        network: the network, in training.
        images: noise for every stream of every sample, (B, C_m, H, W).
    """

    def __init__(self, case: Case) -> None:
        _set_precision(case)
        torch.manual_seed(0)
        self.case = case
        self.device = torch.device(case.device)
        self.network = network_of(case)
        self._baseline = None
        if case.is_baseline:
            self._baseline = BASELINES[case.name](cast(StreamResNet, self.network))
        else:
            self.network.memory = cast(MemoryMode, case.name)
        parameters = self.network.parameters()
        self._optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, fused=True)
        self.images = [self._noise(channels) for channels in case.streams.values()]
        self.target = (torch.arange(case.batch_size) % NUM_CLASSES).to(self.device)

    def loss(self, mask: Tensor) -> tuple[Loss, list[Tensor]]:
        """Return how to get the loss of a batch, and the tensors that it brings.

        Args:
            mask: who is present, (B, M), bool.
        """
        if self._baseline is not None:
            present = mask.to(self.device)
            return self._baseline_loss(present), [*self.images, present, self.target]
        images, target = self.images, self.target
        if self.case.seen == "repeated":
            samples, mask = _repeated(mask)
            images = [x[samples.to(self.device)] for x in images]
            target = target[samples.to(self.device)]
        batch = replace(self.network.to_batch(images, mask), target=target)
        if self.case.seen == "subsets":
            views = Views.with_subsets(batch.presence).to(self.device)
            batch = replace(batch, views=views)
        loss = self._graphed_loss(batch) if self.case.graphs else self._eager_loss(batch)
        return loss, [*batch.streams, target]

    def step(self, loss: Loss, *, free_gradients: bool = False) -> None:
        """Take one training step; gradients that stay count as no activation memory."""
        loss().backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=free_gradients)

    def warm_up(self, loss: Loss, *, free_gradients: bool = False) -> None:
        """Let libraries choose their algorithms, and graphs be captured."""
        for _ in range(_WARM_UP[self.device.type]):
            self.step(loss, free_gradients=free_gradients)

    def _baseline_loss(self, present: Tensor) -> Loss:
        def loss() -> Tensor:
            assert self._baseline is not None
            with self._autocast():
                return F.cross_entropy(self._baseline(self.images, present), self.target)

        return loss

    def _eager_loss(self, batch: StreamBatch) -> Loss:
        def loss() -> Tensor:
            with self._autocast():
                return forward_and_loss(self.network, _LOSS, batch)[0]

        return loss

    def _graphed_loss(self, batch: StreamBatch) -> Loss:
        graphed = ms.GraphedStep(self.network, _LOSS)

        def loss() -> Tensor:
            with self._autocast():
                return graphed(batch)[0]

        return loss

    def _autocast(self) -> torch.autocast:
        enabled = self.case.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _noise(self, channels: int) -> Tensor:
        shape = (self.case.batch_size, channels, *self.case.image_size)
        return torch.randn(shape, device=self.device).contiguous(memory_format=torch.channels_last)


_LOSS = StepLoss(partial(F.cross_entropy, reduction="none"))


def _repeated(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The sample of each subset of each sample's streams, and the mask of that subset."""
    presence = Presence.from_mask(mask)
    views = Views.with_subsets(presence)
    subset = torch.cat(
        [torch.full((g.views.stop - g.views.start,), g.subset) for g in views.groups]
    )
    kept = subset[:, None] >> torch.arange(presence.num_streams) & 1
    return views.sample, kept.bool()


def _set_precision(case: Case) -> None:
    allowed = case.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
