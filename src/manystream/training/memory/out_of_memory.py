"""A training step that does not fit becomes an error that says why, and what to try."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch

from manystream.batch import StreamBatch
from manystream.models import StreamNetwork
from manystream.training.memory.advice import Advice, advise
from manystream.training.memory.needs import Step, measure_needs
from manystream.training.module import ClassifierModule
from manystream.training.options import Precision

_T = TypeVar("_T")


class StepOutOfMemory(torch.OutOfMemoryError):
    """A training step did not fit into memory.

    Attributes:
        advice: what it keeps, and what would fit.
    """

    def __init__(self, advice: Advice) -> None:
        lines = [str(advice)]
        changes = advice.changes()
        if changes:
            lines.append(f"try: {', '.join(_in_python(n, v) for n, v in changes.items())}")
        super().__init__("\n".join(lines))
        self.advice = advice


@dataclass
class LatestBatch:
    """The form of the batch that a step was begun with, and none of its tensors.

    Attributes:
        batch_size: samples of the latest batch; 0 before the first.
        image_size: their height and width in pixels.
        in_graphs: whether the step was to be replayed from CUDA graphs.
    """

    batch_size: int = 0
    image_size: tuple[int, int] = (0, 0)
    in_graphs: bool = False


class StepWatch(pl.Callback):
    """Takes the form of every batch down, where it can be read when all else of the run is gone.

    Lightning ties a callback to the module, so whoever holds one holds all memory of a run.

    Args:
        latest: where to write.
    """

    def __init__(self, latest: LatestBatch) -> None:
        self._latest = latest

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the batch's form down."""
        if isinstance(batch, StreamBatch):
            height, width = batch.streams[0].shape[2:]
            self._latest.batch_size, self._latest.image_size = len(batch), (height, width)
            assert isinstance(pl_module, ClassifierModule)
            self._latest.in_graphs = pl_module.in_graphs


def explain_out_of_memory(
    run: Callable[[], _T], network: StreamNetwork, latest: LatestBatch, precision: Precision
) -> _T:
    """Call what trains a network; where its steps run out of memory, find out what would fit.

    Args:
        run: trains the network, with a trainer of its own.
        network: the network.
        latest: what a :class:`StepWatch` of that training writes.
        precision: arithmetic of that training.

    Raises:
        StepOutOfMemory: if a training step ran out of memory.
    """
    try:
        return run()
    except torch.OutOfMemoryError:
        if latest.batch_size == 0:  # The weights alone do not fit.
            raise
    # Outside of the handler nothing holds the run and its tensors any more.
    network.to("cpu")
    step = Step(latest.batch_size, latest.image_size, _AUTOCAST.get(precision))
    needs = measure_needs(network, step)
    memory = getattr(network, "memory", None)
    advice = advise(needs, step, memory, _available_bytes(), in_graphs=latest.in_graphs)
    raise StepOutOfMemory(advice)


_AUTOCAST: dict[Precision, torch.dtype] = {
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.bfloat16,  # as large
}


def _available_bytes() -> int | None:
    """Device memory that this process may have; None without a GPU."""
    gc.collect()
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    allowed = int(total * torch.cuda.get_per_process_memory_fraction())
    return min(free + torch.cuda.memory_reserved(), allowed)


def _in_python(name: str, value: Any) -> str:
    if name == "memory":
        return f'model.memory = "{value}"'
    return f"a loader with {name}={value}" if name == "batch_size" else f'fit({name}="{value}")'
