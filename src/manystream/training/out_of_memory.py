"""Turn a training step that does not fit into memory into an error that says why, and what would.

What a step takes is counted on the CPU at two small batch sizes, in the network's memory mode and
each leaner one, and drawn on as a line.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, get_args

import lightning.pytorch as pl
import torch
from torch import nn

from manystream.batch import StreamBatch, map_target
from manystream.memory import MemoryReport, measure
from manystream.models import StreamNetwork
from manystream.models.memory_modes import MemoryMode
from manystream.presence import Presence, Views
from manystream.training.module import TrainingModule
from manystream.training.options import Precision

_T = TypeVar("_T")
_Name = TypeVar("_Name", bound=str)

_MEASURED_AT = (2, 4)
"""Batch sizes that a line is drawn through; with one sample a norm may do without statistics."""

_SAFE_SHARE = 0.9
"""Of the memory that there is; work space of kernels and fragments take some of the rest."""

_LINES_SHOWN = 3
_BYTES_IN_MIB = 2**20

_AUTOCAST: dict[Precision, torch.dtype] = {
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.bfloat16,  # as large
}


class StepOutOfMemory(torch.OutOfMemoryError):
    """A training step did not fit into memory.

    Attributes:
        advice: what it keeps, and what would fit.
    """

    def __init__(self, advice: Advice) -> None:
        lines = [str(advice)]
        if changes := advice.changes():
            lines.append(f"try: {', '.join(_in_python(n, v) for n, v in changes.items())}")
        super().__init__("\n".join(lines))
        self.advice = advice


@dataclass
class StepForm:
    """The form of a training step, without any tensor of the device.

    Attributes:
        batch_size: samples; 0 before the first step.
        image_size: their height and width in pixels.
        target: of some samples of that image size, on the CPU.
        in_graphs: whether the step was to be replayed from CUDA graphs, which take more memory than
            the eager steps that are counted here.
        see: with which subsets of their streams samples are seen; None with their full set.
    """

    batch_size: int = 0
    image_size: tuple[int, int] = (0, 0)
    target: Any = field(default=None, compare=False)
    in_graphs: bool = False
    see: Callable[[Presence], Views] | None = field(default=None, compare=False)

    def noise(self, network: StreamNetwork, batch_size: int | None = None) -> StreamBatch:
        """Make a batch of that form, of every stream, with the targets over and over."""
        batch_size = batch_size or self.batch_size
        dtype = next(network.parameters()).dtype
        images = [
            torch.randn(batch_size, channels, *self.image_size, dtype=dtype)
            for channels in network.in_channels.values()
        ]
        target = map_target(lambda t: t[torch.arange(batch_size) % len(t)], self.target)
        batch = replace(network.to_batch(images), target=target)
        return batch if self.see is None else replace(batch, views=self.see(batch.presence))


class StepWatch(pl.Callback):
    """Takes the form of every step down, where it can be read when all else of the run is gone.

    Lightning ties a callback to the module, so whoever holds one holds all memory of a run.

    Args:
        latest: where to write.
    """

    def __init__(self, latest: StepForm) -> None:
        self._latest = latest

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the step's form down."""
        if not isinstance(batch, StreamBatch) or len(batch) == 0:
            return
        height, width = batch.streams[0].shape[2:]
        latest = self._latest
        if latest.batch_size == 0 or latest.image_size != (height, width):
            # Waits for the device, so not at every step.
            latest.target = map_target(lambda t: t[:1].cpu(), batch.target)
        latest.batch_size, latest.image_size = len(batch), (height, width)
        assert isinstance(pl_module, TrainingModule)
        latest.in_graphs, latest.see = pl_module.in_graphs, pl_module.see


def explain_out_of_memory(
    run: Callable[[], _T],
    network: StreamNetwork,
    loss: nn.Module,
    latest: StepForm,
    precision: Precision,
) -> _T:
    """Call what trains a network; where its steps run out of memory, find out what would fit.

    Args:
        run: trains the network, with a trainer of its own.
        network: the network.
        loss: of its steps.
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
    needs = measure_needs(network, loss.to("cpu"), latest, _AUTOCAST.get(precision))
    raise StepOutOfMemory(advise(needs, latest, _available_bytes()))


@dataclass(frozen=True)
class Need:
    """Bytes as a line over the batch size: ``base + per_sample · B``.

    Example:
        >>> need = Need.through(2, 30, 4, 50)
        >>> need.at(8), need.largest_batch(100)
        (90, 9)
    """

    base: float
    per_sample: float

    @classmethod
    def through(cls, first: int, first_bytes: int, second: int, second_bytes: int) -> Need:
        """Draw the line through two batch sizes and their bytes."""
        slope = (second_bytes - first_bytes) / (second - first)
        return cls(first_bytes - slope * first, slope)

    def at(self, batch_size: int) -> int:
        """Tell the bytes at a batch size."""
        return round(self.base + self.per_sample * batch_size)

    def largest_batch(self, available_bytes: float) -> int:
        """Count the samples that so many bytes are enough for; 0 if for none."""
        return max(int((available_bytes - self.base) / self.per_sample), 0)


@dataclass(frozen=True)
class StepNeeds:
    """What a network's training step takes, with every stream present.

    Attributes:
        peak: activations at their peak, of the mode that the network is in and each leaner one.
        kept_by_kind: what that mode keeps for backward, by kind.
        kept_by_layer: the same by layer.
        fixed_bytes: weights, buffers, gradients, and the two moments of AdamW.
    """

    peak: dict[MemoryMode, Need]
    kept_by_kind: dict[str, Need]
    kept_by_layer: dict[str, Need]
    fixed_bytes: int

    @property
    def memory(self) -> MemoryMode:
        """Name the mode that the network is in."""
        return next(iter(self.peak))


def measure_needs(
    network: StreamNetwork,
    loss: nn.Module,
    form: StepForm,
    autocast_dtype: torch.dtype | None = None,
) -> StepNeeds:
    """Count what a step takes, on the CPU, at two small batch sizes.

    Args:
        network: the network, on the CPU; a copy of it is measured.
        loss: of the step, on the CPU.
        form: image size and targets.
        autocast_dtype: precision of the forward pass; None is that of the parameters.
    """

    def measured_in(mode: MemoryMode) -> list[MemoryReport]:
        measured = copy.deepcopy(network)
        measured.memory = mode
        batches = [form.noise(network, batch_size) for batch_size in _MEASURED_AT]
        return [measure(measured, batch, autocast_dtype, loss=loss) for batch in batches]

    modes: tuple[MemoryMode, ...] = get_args(MemoryMode)
    reports = {mode: measured_in(mode) for mode in modes[modes.index(network.memory) :]}
    small, large = reports[network.memory]
    parameters = sum(p.nbytes for p in network.parameters())
    return StepNeeds(
        {mode: _line(*(r.peak_allocated_bytes for r in pair)) for mode, pair in reports.items()},
        _lines(small.kept_by_kind, large.kept_by_kind),
        _lines(small.kept_by_layer, large.kept_by_layer),
        4 * parameters + sum(b.nbytes for b in network.buffers()),
    )


@dataclass(frozen=True)
class Setting:
    """A way to run a step.

    Attributes:
        memory: memory mode.
        batch_size: samples per batch.
        need_bytes: what it takes, weights and optimizer included.
    """

    memory: MemoryMode
    batch_size: int
    need_bytes: int

    def __str__(self) -> str:
        size = _mib(self.need_bytes)
        return f"memory mode {self.memory} with batches of {self.batch_size}: {size} in all"


@dataclass(frozen=True)
class Advice:
    """What did not fit, and what would.

    Attributes:
        failed: the step that did not fit.
        needs: what steps take, in its memory mode and leaner ones.
        settings: what would fit, the best first: the same batch in a leaner mode, or else the
            largest power of two in the leanest; and that in the same mode.
    """

    failed: StepForm
    needs: StepNeeds
    settings: list[Setting]

    def changes(self) -> dict[str, Any]:
        """Say what to change for the best setting: ``memory``, ``batch_size``, ``cuda_graphs``."""
        if not self.settings:
            return {}
        best = self.settings[0]
        changed: dict[str, Any] = {}
        if best.memory != self.needs.memory:
            changed["memory"] = best.memory
        if best.batch_size != self.failed.batch_size:
            changed["batch_size"] = best.batch_size
        return changed | ({"cuda_graphs": "off"} if self.failed.in_graphs else {})

    def __str__(self) -> str:
        batch_size, (height, width) = self.failed.batch_size, self.failed.image_size
        kept = sum(need.at(batch_size) for need in self.needs.kept_by_kind.values())
        how = "without CUDA graphs, by estimate" if self.failed.in_graphs else "by estimate"
        fits = [f"what would fit, {how}:", *(f"  {setting}" for setting in self.settings)]
        if not self.settings:
            fits = [
                "no memory mode and batch size would fit; take smaller images or a narrower net"
            ]
        return "\n".join(
            [
                f"a training step of {batch_size} samples of {height}x{width} pixels in memory "
                f"mode {self.needs.memory} does not fit into the device's memory.",
                f"it keeps {_mib(kept)} for the backward pass if every stream is present:",
                f"  {_most(self.needs.kept_by_kind, batch_size)}",
                f"  most of it in {_most(self.needs.kept_by_layer, batch_size)}",
                *fits,
            ]
        )


def advise(needs: StepNeeds, failed: StepForm, available_bytes: int | None) -> Advice:
    """Find what would fit where a step did not.

    Args:
        needs: what steps take, see :func:`measure_needs`.
        failed: the step that did not fit.
        available_bytes: memory that the process may have; None if unknown.
    """
    # That it failed says more than any estimate of what there was.
    most = needs.peak[needs.memory].at(failed.batch_size)
    if available_bytes is not None:
        most = min(most, available_bytes - needs.fixed_bytes)
    settings = [
        Setting(mode, batch_size, needs.peak[mode].at(batch_size) + needs.fixed_bytes)
        for mode, batch_size in _candidates(needs, failed.batch_size, _SAFE_SHARE * most)
    ]
    return Advice(failed, needs, settings)


def _candidates(
    needs: StepNeeds, batch_size: int, available: float
) -> Iterator[tuple[MemoryMode, int]]:
    current, *leaner = needs.peak
    mode = next((m for m in leaner if needs.peak[m].at(batch_size) <= available), None)
    if mode is not None:
        yield mode, batch_size
    for other in ([] if mode else leaner[-1:]) + [current]:
        most = needs.peak[other].largest_batch(available)
        if most:
            yield other, 1 << (most.bit_length() - 1)  # the largest power of two up to it


def _line(first_bytes: int, second_bytes: int) -> Need:
    return Need.through(_MEASURED_AT[0], first_bytes, _MEASURED_AT[1], second_bytes)


def _lines(first: Mapping[_Name, int], second: Mapping[_Name, int]) -> dict[str, Need]:
    return {name: _line(first.get(name, 0), value) for name, value in second.items()}


def _available_bytes() -> int | None:
    """Count the device memory that this process may have; None without a GPU."""
    gc.collect()
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    allowed = int(total * torch.cuda.get_per_process_memory_fraction())
    return min(free + torch.cuda.memory_reserved(), allowed)


def _most(needs: Mapping[str, Need], batch_size: int) -> str:
    by_size = sorted(((n.at(batch_size), name) for name, n in needs.items()), reverse=True)
    return ", ".join(f"{name or 'other'} {_mib(size)}" for size, name in by_size[:_LINES_SHOWN])


def _mib(size: int) -> str:
    return f"{size / _BYTES_IN_MIB:,.0f} MiB"


def _in_python(name: str, value: Any) -> str:
    if name == "memory":
        return f'model.memory = "{value}"'
    return f"a loader with {name}={value}" if name == "batch_size" else f'fit({name}="{value}")'
