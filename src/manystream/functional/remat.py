"""Rematerialisation: a cheap output is rebuilt when the backward pass wants it, not kept.

While a forward pass is :func:`recording`, an operation may :func:`register` how its output follows
from other tensors. When autograd then saves that output, the recipe is saved in its place. A recipe
whose source is itself rebuildable holds that source's recipe, so chains need nothing but what is
kept at their start. What a recipe must not do is draw random numbers or move running statistics.

Each recipe counts how often autograd, or a recipe that is in use, will ask for it. It is built at
the first time and let go at the last, so nothing is built twice and nothing outlives its use.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from manystream.functional import lanes


class _Recipe:
    """How to rebuild one tensor, and how often that is still asked for."""

    def __init__(self, function: Callable[..., Tensor], sources: tuple[Tensor | _Recipe, ...]):
        self._function = function
        self._sources = sources
        self._uses = 0
        self._value: Tensor | None = None
        self._made_in: torch.cuda.Stream | None = None

    def will_be_used(self) -> None:
        if self._uses == 0:
            for source in self._sources:
                if isinstance(source, _Recipe):
                    source.will_be_used()
                else:
                    _tell(source)
        self._uses += 1

    def build(self) -> Tensor:
        self._uses -= 1
        value = self._value
        if value is None:
            value = self._function(*map(_tensor, self._sources))
            self._made_in = lanes.here(value)
        else:
            lanes.read_here(value, self._made_in)
        self._value = value if self._uses > 0 else None
        return value


@dataclass(frozen=True)
class _Saved:
    """What autograd holds instead of a tensor: a recipe for its storage, and the view of it."""

    recipe: _Recipe
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


class _Recorder:
    """The recipes of one forward pass, by storage; a storage that dies takes its entry along."""

    def __init__(self) -> None:
        self._recipes: weakref.WeakKeyDictionary[torch.UntypedStorage, _Recipe] = (
            weakref.WeakKeyDictionary()
        )

    def register(self, output: Tensor, function: Callable[..., Tensor], *sources: Tensor) -> None:
        handles = tuple(self._recipes.get(s.untyped_storage(), s.detach()) for s in sources)
        self._recipes[output.untyped_storage()] = _Recipe(function, handles)

    def pack(self, tensor: Tensor) -> Tensor | _Saved:
        recipe = self._recipes.get(tensor.untyped_storage())
        if recipe is None:
            _tell(tensor)
            # An operation's own output would hold the operation that holds it: a pass that is never
            # followed by its backward would never be let go.
            return tensor.detach()
        recipe.will_be_used()
        return _Saved(recipe, tensor.size(), tensor.stride(), tensor.storage_offset())

    def clear(self) -> None:
        self._recipes.clear()


_recorder: ContextVar[_Recorder | None] = ContextVar("manystream_recorder", default=None)
_observer: ContextVar[Callable[[Tensor], object] | None] = ContextVar(
    "manystream_observer", default=None
)


@contextmanager
def recording() -> Iterator[None]:
    """Let the operations of a forward pass register how to rebuild their outputs.

    Without gradients there is nothing to keep, and nothing is recorded.
    """
    if not torch.is_grad_enabled():
        yield
        return
    recorder = _Recorder()
    token = _recorder.set(recorder)
    try:
        with torch.autograd.graph.saved_tensors_hooks(recorder.pack, _unpack):
            yield
    finally:
        _recorder.reset(token)
        recorder.clear()


@contextmanager
def observing(observer: Callable[[Tensor], object]) -> Iterator[None]:
    """Tell an observer of every tensor that a recording keeps for the backward pass.

    That is what autograd saves and no recipe replaces, and what the recipes in its place start
    from; a tensor may be told more than once. Hooks for saved tensors from outside of a recording
    see neither.
    """
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def _tell(kept: Tensor) -> None:
    observer = _observer.get()
    if observer is not None:
        observer(kept)


def register(output: Tensor, function: Callable[..., Tensor], *sources: Tensor) -> None:
    """Say that ``output`` is ``function(*sources)``, bit for bit; nothing happens unless recording.

    Args:
        output: a tensor that owns its whole storage and is not changed any more.
        function: computes it anew, in the same memory layout, without side effects. Autocast and
            gradients are off when it runs.
        sources: the tensors it depends on; all else it needs must be small and live on.
    """
    recorder = _recorder.get()
    if recorder is not None:
        recorder.register(output, _plainly(function, output.device.type), *sources)


def is_recording() -> bool:
    """Whether a forward pass is being recorded."""
    return _recorder.get() is not None


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a parameter; while recording, its copy is made again in the backward pass, not kept."""
    if tensor.dtype == dtype:
        return tensor
    copy = tensor.to(dtype)
    register(copy, lambda source: source.to(dtype), tensor)
    return copy


def _plainly(function: Callable[..., Tensor], device_type: str) -> Callable[..., Tensor]:
    def run(*sources: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device_type, enabled=False):
            return function(*sources)

    return run


def _tensor(source: Tensor | _Recipe) -> Tensor:
    return source.build() if isinstance(source, _Recipe) else source


def _unpack(saved: Tensor | _Saved) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    return saved.recipe.build().as_strided(saved.size, saved.stride, saved.offset)
