"""Which memory mode or batch size would fit, and how to say it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from manystream.models.memory_modes import MemoryMode
from manystream.training.memory.needs import Need, Step, StepNeeds

_SAFE_SHARE = 0.9
"""Of the memory that there is; work space of kernels and fragments take some of the rest."""

_LINES_SHOWN = 3
_BYTES_IN_MIB = 2**20


@dataclass(frozen=True)
class Setting:
    """A way to run a step.

    Attributes:
        memory: memory mode; None for a network that has none.
        batch_size: samples per batch.
        need_bytes: what it takes, weights and optimizer included.
    """

    memory: MemoryMode | None
    batch_size: int
    need_bytes: int


@dataclass(frozen=True)
class Advice:
    """What did not fit, and what would.

    Attributes:
        failed: the step that did not fit.
        memory: its memory mode; None for a network without modes.
        needs: what steps take.
        settings: what would fit, the best first: the same batch in a leaner mode, or else the
            largest power of two in the leanest; and that in the same mode.
        in_graphs: whether the step was to be replayed from CUDA graphs. They take more memory than
            eager steps, which is what settings are about.
    """

    failed: Step
    memory: MemoryMode | None
    needs: StepNeeds
    settings: list[Setting]
    in_graphs: bool = False

    def changes(self) -> dict[str, Any]:
        """What to change to have the best setting: ``memory``, ``batch_size``, ``cuda_graphs``."""
        if not self.settings:
            return {}
        best = self.settings[0]
        asked = {"memory": best.memory, "batch_size": best.batch_size}
        had = {"memory": self.memory, "batch_size": self.failed.batch_size}
        changed = {name: value for name, value in asked.items() if value != had[name]}
        return changed | ({"cuda_graphs": "off"} if self.in_graphs else {})

    def __str__(self) -> str:
        batch_size, (height, width) = self.failed.batch_size, self.failed.image_size
        mode = "" if self.memory is None else f" in memory mode {self.memory}"
        kept = sum(need.at(batch_size) for need in self.needs.kept_by_kind.values())
        return "\n".join(
            [
                f"a training step of {batch_size} samples of {height}x{width} pixels{mode} does "
                "not fit into the device's memory.",
                f"it keeps {_mib(kept)} for the backward pass if every stream is present:",
                f"  {_most(self.needs.kept_by_kind, batch_size)}",
                f"  most of it in {_most(self.needs.kept_by_layer, batch_size)}",
                *self._what_fits(),
            ]
        )

    def _what_fits(self) -> list[str]:
        if not self.settings:
            return [
                "no memory mode and batch size would fit; take smaller images or a narrower net"
            ]
        fits = [f"  {_describe(setting)}" for setting in self.settings]
        how = "without CUDA graphs, by estimate" if self.in_graphs else "by estimate"
        return [f"what would fit, {how}:", *fits]


def advise(
    needs: StepNeeds,
    failed: Step,
    memory: MemoryMode | None,
    available_bytes: int | None,
    *,
    in_graphs: bool = False,
) -> Advice:
    """Find what would fit where a step did not.

    Args:
        needs: what steps take, see :func:`measure_needs`.
        failed: the step that did not fit.
        memory: its memory mode; None for a network without modes.
        available_bytes: memory that the process may have; None if unknown.
        in_graphs: whether the step was to be replayed from CUDA graphs.
    """
    mode = next(iter(needs.peak))
    # That it failed says more than any estimate of what there was.
    most = needs.peak[mode].at(failed.batch_size)
    if available_bytes is not None:
        most = min(most, available_bytes - needs.fixed_bytes)
    settings = list(_candidates(needs, failed.batch_size, _SAFE_SHARE * most))
    if memory is None:
        settings = [replace(setting, memory=None) for setting in settings]
    return Advice(failed, memory, needs, settings, in_graphs)


def _candidates(needs: StepNeeds, batch_size: int, available: float) -> Iterator[Setting]:
    current, *leaner = needs.peak
    mode = next((m for m in leaner if needs.peak[m].at(batch_size) <= available), None)
    if mode is not None:
        yield _setting(needs, mode, batch_size)
    for other in ([] if mode else leaner[-1:]) + [current]:
        smaller = _power_of_two(needs.peak[other].largest_batch(available))
        if smaller:
            yield _setting(needs, other, smaller)


def _setting(needs: StepNeeds, mode: MemoryMode, batch_size: int) -> Setting:
    return Setting(mode, batch_size, needs.peak[mode].at(batch_size) + needs.fixed_bytes)


def _power_of_two(most: int) -> int:
    """The largest power of two up to a number; 0 for 0."""
    return 1 << (most.bit_length() - 1) if most else 0


def _describe(setting: Setting) -> str:
    mode = "" if setting.memory is None else f"memory mode {setting.memory} with "
    return f"{mode}batches of {setting.batch_size}: {_mib(setting.need_bytes)} in all"


def _most(needs: Mapping[str, Need], batch_size: int) -> str:
    by_size = sorted(((n.at(batch_size), name) for name, n in needs.items()), reverse=True)
    return ", ".join(f"{name or 'other'} {_mib(size)}" for size, name in by_size[:_LINES_SHOWN])


def _mib(size: int) -> str:
    return f"{size / _BYTES_IN_MIB:,.0f} MiB"
