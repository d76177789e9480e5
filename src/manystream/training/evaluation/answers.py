"""What a network answers for every sample under several conditions, in one pass over a loader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from manystream.batch import StreamBatch
from manystream.models import StreamNetwork
from manystream.training.batches import read_batch
from manystream.training.evaluation.corruptions import Corruption
from manystream.training.evaluation.metrics import MeanClassAccuracy
from manystream.training.trainer import Batches, trainer_session

UNANSWERED = -1
"""The predicted class of a sample that a condition leaves without any stream."""

Subset = tuple[bool, ...]
"""Whether each of the M streams is there."""


@dataclass(frozen=True)
class Condition:
    """What the samples of a loader are to have.

    Attributes:
        kept: whether each stream stays where a sample has it; M of them.
        corruption: what is done to the images of one stream.
    """

    kept: Subset
    corruption: Corruption | None = None


@dataclass(frozen=True)
class Answers:
    """What a network said of N samples under one condition.

    Attributes:
        predicted: most probable class, shape (N,), int64; :data:`UNANSWERED` where no stream was
            left.
        loss: cross-entropy, shape (N,), float32; 0 there.
        target: true class, shape (N,), int64.
        num_classes: number of classes.
    """

    predicted: Tensor
    loss: Tensor
    target: Tensor
    num_classes: int

    def measure(self) -> dict[str, float]:
        """``loss``, ``accuracy``, ``mean_class_accuracy`` and ``num_samples``; empty for none."""
        answered = self.predicted != UNANSWERED
        if not answered.any():
            return {}
        predicted, target = self.predicted[answered], self.target[answered]
        mean_class_accuracy = MeanClassAccuracy(self.num_classes, validate_args=False)
        as_logits = F.one_hot(predicted, self.num_classes).float()
        return {
            "loss": self.loss[answered].double().mean().item(),
            "accuracy": (predicted == target).double().mean().item(),
            "mean_class_accuracy": mean_class_accuracy(as_logits, target).item(),
            "num_samples": float(len(target)),
        }


@dataclass(frozen=True)
class Pass:
    """One pass over a loader.

    Attributes:
        answers: of each condition, in order.
        present: which streams each sample had, shape (N, M), bool.
    """

    answers: list[Answers]
    present: Tensor


def collect_answers(
    network: StreamNetwork,
    loader: Iterable[Any],
    conditions: Sequence[Condition],
    *,
    accelerator: str = "auto",
    progress: bool = False,
    seed: int = 0,
) -> Pass:
    """Read a loader once and ask a network under every condition.

    Args:
        network: the network.
        loader: batches as :func:`read_batch` takes them, with targets.
        conditions: what the samples are to have.
        accelerator: device, by Lightning's names.
        progress: whether to show a progress bar.
        seed: of what corruptions draw; all draw the same.

    Raises:
        ValueError: if a batch does not fit the network or has no target.
    """
    module = _ConditionsModule(network, conditions, seed)
    with trainer_session(progress=progress, accelerator=accelerator) as trainer:
        batches: list[_BatchAnswers] = trainer.predict(module, Batches(loader)) or []  # type: ignore[assignment]
    if not batches:
        empty = torch.empty(0, dtype=torch.int64)
        none = Answers(empty, empty.float(), empty, network.num_classes)
        return Pass([none] * len(conditions), torch.empty(0, network.num_streams, dtype=torch.bool))
    target = torch.cat([batch.target for batch in batches])
    predicted = torch.cat([batch.predicted for batch in batches], dim=1)
    loss = torch.cat([batch.loss for batch in batches], dim=1)
    answers = [
        Answers(p, v, target, network.num_classes) for p, v in zip(predicted, loss, strict=True)
    ]
    return Pass(answers, torch.cat([batch.present for batch in batches]))


class _BatchAnswers(NamedTuple):
    """Answers of one batch under K conditions: ``predicted`` and ``loss`` are (K, B)."""

    predicted: Tensor
    loss: Tensor
    target: Tensor
    present: Tensor


class _ConditionsModule(pl.LightningModule):
    """Shows every batch to the network once for each condition."""

    def __init__(self, network: StreamNetwork, conditions: Sequence[Condition], seed: int) -> None:
        super().__init__()
        self.network = network
        self.conditions = conditions
        self.seed = seed
        self.generators: list[torch.Generator] = []

    def on_predict_start(self) -> None:
        """Give every condition random numbers of its own, where its images are."""
        self.generators = [
            torch.Generator(self.device).manual_seed(self.seed) for _ in self.conditions
        ]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> StreamBatch:
        """Check a loader's batch and make it compact, on the host."""
        return read_batch(batch, self.network.in_channels, self.network.num_classes)

    def predict_step(self, batch: StreamBatch, batch_idx: int) -> _BatchAnswers:
        """Answers of a batch."""
        both = [
            self._answer(batch, condition, generator)
            for condition, generator in zip(self.conditions, self.generators, strict=True)
        ]
        predicted, loss = (torch.stack(rows) for rows in zip(*both, strict=True))
        return _BatchAnswers(predicted, loss, _target(batch), batch.presence.mask)

    def _answer(
        self, batch: StreamBatch, condition: Condition, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Predicted class and loss of every sample under a condition, both (B,)."""
        shown, samples = _keep(batch, condition.kept)
        predicted = torch.full((len(batch),), UNANSWERED, device=self.device)
        loss = torch.zeros(len(batch), device=self.device)
        if len(shown) == 0:
            return predicted, loss
        if condition.corruption is not None:
            shown = condition.corruption.apply(shown, generator)
        logits = self.network(shown).float()
        predicted[samples] = logits.argmax(dim=1)
        loss[samples] = F.cross_entropy(logits, _target(shown), reduction="none")
        return predicted, loss


def _target(batch: StreamBatch) -> Tensor:
    if batch.target is None:
        raise ValueError("the loader's batches have no target; expected one per sample")
    target: Tensor = batch.target
    return target


def _keep(batch: StreamBatch, kept: Sequence[bool]) -> tuple[StreamBatch, Tensor | slice]:
    """The batch with only some streams, and which samples are still in it."""
    if all(kept):
        return batch, slice(None)
    mask = batch.presence.mask & torch.tensor(kept)
    return batch.keep(mask), mask.any(dim=1).nonzero().flatten().to(batch.streams[0].device)
