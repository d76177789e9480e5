"""Turn a training step that does not fit into memory into an error that says why, and what would.

What a step takes is counted on the CPU at two small batch sizes, in the network's memory mode and
each leaner one, and drawn on as a line. No trainer is needed here, so commands that do not train
can tell this error.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar, get_args

import torch
from torch import nn

from manystream.batch import StreamBatch, map_target
from manystream.memory import MemoryReport, measure
from manystream.models import StreamNetwork
from manystream.models.memory_modes import MemoryMode
from manystream.presence import Presence, Views
from manystream.training.options import Precision

_T = TypeVar("_T")

Line = Callable[[int], int]
"""Bytes as a line over the batch size."""

_COUNTED_AT = (2, 4)
"""Batch sizes that a line is drawn through; with one sample a norm may do without statistics."""

_SAFE_SHARE = 0.9
"""Of the memory that there is; work space of kernels and fragments take some of the rest."""

_IN_PYTHON = {
    "memory": 'model.memory = "{}"',
    "batch_size": "a loader with batch_size={}",
    "cuda_graphs": 'fit(cuda_graphs="{}")',
}

_LARGEST_SHOWN = 3
_BYTES_IN_MIB = 2**20


class Setting(NamedTuple):
    """A memory mode and batch size, and all the bytes that a step then takes."""

    memory: MemoryMode
    batch_size: int
    need_bytes: int


class StepOutOfMemory(torch.OutOfMemoryError):
    """A training step did not fit into memory.

    Attributes:
        reason: what did not fit, what it keeps, and what would fit.
        settings: what would fit, the best first.
        changes: what to change for the best: ``memory``, ``batch_size``, ``cuda_graphs``.
    """

    def __init__(self, reason: str, settings: list[Setting], changes: dict[str, Any]) -> None:
        tries = ", ".join(_IN_PYTHON[name].format(value) for name, value in changes.items())
        super().__init__(f"{reason}\ntry: {tries}" if tries else reason)
        self.reason, self.settings, self.changes = reason, settings, changes


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
    target: Any = None
    in_graphs: bool = False
    see: Callable[[Presence], Views] | None = None

    def noise(self, network: StreamNetwork, batch_size: int) -> StreamBatch:
        """Make a batch of that form, of every stream, with the targets over and over."""
        dtype = next(network.parameters()).dtype
        images = [
            torch.randn(batch_size, channels, *self.image_size, dtype=dtype)
            for channels in network.in_channels.values()
        ]
        target = map_target(lambda t: t[torch.arange(batch_size) % len(t)], self.target)
        batch = replace(network.to_batch(images), target=target)
        return batch if self.see is None else replace(batch, views=self.see(batch.presence))


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
        latest: form of that training's latest step, kept up to date while it runs.
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
    reduced = torch.bfloat16 if precision in ("bf16-mixed", "16-mixed") else None  # as large
    reports = count_steps(network.to("cpu"), loss.to("cpu"), latest, reduced)
    parameters = sum(p.nbytes for p in network.parameters())
    # With gradients, and the two moments of AdamW.
    fixed_bytes = 4 * parameters + sum(b.nbytes for b in network.buffers())
    peaks = {
        mode: line_through(small.peak_allocated_bytes, large.peak_allocated_bytes)
        for mode, (small, large) in reports.items()
    }
    settings = settings_that_fit(peaks, fixed_bytes, latest.batch_size, _available_bytes())
    raise explained(latest, network.memory, reports[network.memory], settings)


def count_steps(
    network: StreamNetwork,
    loss: nn.Module,
    form: StepForm,
    autocast_dtype: torch.dtype | None = None,
) -> dict[MemoryMode, tuple[MemoryReport, MemoryReport]]:
    """Count what steps with every stream take, at two small batch sizes, on the CPU.

    Args:
        network: the network, on the CPU; copies of it are measured.
        loss: of the step, on the CPU.
        form: image size and targets.
        autocast_dtype: precision of the forward pass; None is that of the parameters.

    Returns:
        Both counts, by the network's memory mode and each leaner one.
    """
    counted, reports = copy.deepcopy(network), {}
    small, large = (form.noise(network, batch_size) for batch_size in _COUNTED_AT)
    modes: tuple[MemoryMode, ...] = get_args(MemoryMode)
    for mode in modes[modes.index(network.memory) :]:
        counted.memory = mode
        reports[mode] = (
            measure(counted, small, autocast_dtype, loss=loss),
            measure(counted, large, autocast_dtype, loss=loss),
        )
    return reports


def line_through(small: int, large: int) -> Line:
    """Draw a line through the bytes that were counted at the two batch sizes."""
    first, second = _COUNTED_AT
    slope = (large - small) / (second - first)
    return lambda batch_size: round(small + slope * (batch_size - first))


def settings_that_fit(
    peaks: Mapping[MemoryMode, Line],
    fixed_bytes: int,
    failed_batch_size: int,
    available_bytes: int | None,
) -> list[Setting]:
    """Find what would fit where a step did not.

    Args:
        peaks: activations of a step at their peak, by memory mode: that of the step, then each
            leaner one.
        fixed_bytes: what any step takes besides.
        failed_batch_size: samples of the step.
        available_bytes: memory that the process may have; None if unknown.

    Returns:
        The same batch in a leaner mode, or else the largest power of two in the leanest; and that
        in the same mode.
    """
    current, *leaner = peaks
    # That it failed says more than any estimate of what there was.
    most = peaks[current](failed_batch_size)
    if available_bytes is not None:
        most = min(most, available_bytes - fixed_bytes)
    limit = _SAFE_SHARE * most + fixed_bytes

    def first_of(modes: Sequence[MemoryMode], sizes: Sequence[int]) -> list[Setting]:
        tries = (Setting(m, size, peaks[m](size) + fixed_bytes) for size in sizes for m in modes)
        return [setting for setting in tries if setting.need_bytes <= limit][:1]

    powers = [1 << exponent for exponent in reversed(range(failed_batch_size.bit_length()))]
    leanest = first_of(leaner, [failed_batch_size]) or first_of(leaner[-1:], powers)
    return leanest + first_of([current], powers)


def explained(
    form: StepForm,
    memory: MemoryMode,
    counted: tuple[MemoryReport, MemoryReport],
    settings: list[Setting],
) -> StepOutOfMemory:
    """Put into words what did not fit, and what would.

    Args:
        form: the step that did not fit.
        memory: its memory mode.
        counted: what such steps take, at the two batch sizes.
        settings: what would fit, the best first.
    """
    batch_size, (height, width), (small, large) = form.batch_size, form.image_size, counted
    kept = line_through(small.kept_bytes, large.kept_bytes)(batch_size)
    how = "without CUDA graphs, by estimate" if form.in_graphs else "by estimate"
    fits = [f"what would fit, {how}:"] + [
        f"  memory mode {s.memory} with batches of {s.batch_size}: {_mib(s.need_bytes)} in all"
        for s in settings
    ]
    if not settings:
        fits = ["no memory mode and batch size would fit; take smaller images or a narrower net"]
    lines = [
        f"a training step of {batch_size} samples of {height}x{width} pixels in memory mode "
        f"{memory} does not fit into the device's memory.",
        f"it keeps {_mib(kept)} for the backward pass if every stream is present:",
        f"  {_largest(small.kept_by_kind, large.kept_by_kind, batch_size)}",
        f"  most of it in {_largest(small.kept_by_layer, large.kept_by_layer, batch_size)}",
        *fits,
    ]
    changes: dict[str, Any] = {}
    if settings and settings[0].memory != memory:
        changes["memory"] = settings[0].memory
    if settings and settings[0].batch_size != batch_size:
        changes["batch_size"] = settings[0].batch_size
    if settings and form.in_graphs:
        changes["cuda_graphs"] = "off"
    return StepOutOfMemory("\n".join(lines), settings, changes)


def _largest(small: Mapping[Any, int], large: Mapping[Any, int], batch_size: int) -> str:
    """Name the largest of what is kept."""
    sizes = [(line_through(small.get(n, 0), size)(batch_size), n) for n, size in large.items()]
    sizes = sorted(sizes, reverse=True)[:_LARGEST_SHOWN]
    return ", ".join(f"{name or 'other'} {_mib(size)}" for size, name in sizes)


def _available_bytes() -> int | None:
    """Count the device memory that this process may have; None without a GPU."""
    gc.collect()
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    allowed = int(total * torch.cuda.get_per_process_memory_fraction())
    return min(free + torch.cuda.memory_reserved(), allowed)


def _mib(size: int) -> str:
    return f"{size / _BYTES_IN_MIB:,.0f} MiB"
