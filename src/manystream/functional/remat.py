"""Rematerialisation: a cheap output is rebuilt when the backward pass wants it, not kept.

While a forward pass is :func:`recording`, an operation may :func:`register` how its output follows
from other tensors. When autograd then saves that output, the recipe is saved in its place. A recipe
whose source is itself rebuildable holds that source's recipe, so chains need nothing but what is
kept at their start. What a recipe must not do is draw random numbers or move running statistics.

Each recipe counts how often autograd, or a recipe that is in use, will ask for it. It is built at
the first time and let go at the last, so nothing is built twice and nothing outlives its use.

Autograd does not watch over what its hooks save, so this module does: what was saved, and what it
is rebuilt from, may not be changed in place before the backward pass. A recipe belongs to a tensor
as it was when it was registered; one that is changed later is kept as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable
from typing import cast as type_cast

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from manystream.functional import lanes

F = TypeVar("F", bound=Callable[..., Any])


class Rebuild(NamedTuple):
    """What the backward pass of a network's layers rebuilds instead of keeping.

    Attributes:
        norms: what norms, activations and pools give.
        integrated: the integrated pathway's maps before their norms.
        raw: the streams' raw outputs.
    """

    norms: bool = False
    integrated: bool = False
    raw: bool = False


@runtime_checkable
class Rebuilds(Protocol):
    """A layer some of whose outputs can be rebuilt; a memory mode tells it which to."""

    def set_rebuild(self, rebuild: Rebuild) -> None:
        """Rebuild these from the next forward pass on, and keep the others."""


@dataclass(frozen=True)
class _Kept:
    """A tensor that may not be changed in place until it has been read."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Kept:
        """Keep its memory as it is now."""
        return cls(tensor.detach(), tensor._version)

    @classmethod
    def for_autograd(cls, tensor: Tensor) -> _Kept:
        """Keep what autograd would: a leaf itself, whose ``data`` may be exchanged.

        An operation's own output would hold the operation that holds it: a pass that is never
        followed by its backward would never be let go.
        """
        return cls(tensor, tensor._version) if tensor.is_leaf else cls.of(tensor)

    def read(self) -> Tensor:
        _check_version(self.tensor, self.version, self.tensor.shape)
        return self.tensor


class _Recipe:
    """How to rebuild one tensor, and how often that is still asked for."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        sources: tuple[_Kept | _Recipe, ...],
        reads: tuple[_Kept, ...],
        version: int,
    ) -> None:
        self.version = version
        self._function = function
        self._sources = sources
        self._reads = reads
        self._uses = 0
        self._value: Tensor | None = None
        self._made_in: torch.cuda.Stream | None = None

    def will_be_used(self) -> None:
        if self._uses == 0:
            for source in self._sources:
                if isinstance(source, _Recipe):
                    source.will_be_used()
                else:
                    _tell(source.tensor)
        self._uses += 1

    def build(self) -> Tensor:
        self._uses -= 1
        value = self._value
        if value is None:
            for read in self._reads:
                read.read()
            value = self._function(*map(_read, self._sources))
            self._made_in = lanes.here(value)
        else:
            lanes.read_here(value, self._made_in)
        self._value = value if self._uses > 0 else None
        return value


@dataclass(frozen=True)
class _Rebuilt:
    """What autograd holds instead of a tensor: a recipe for its memory, and the view of it."""

    recipe: _Recipe
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt
    witness: Tensor
    """Holds no memory, and counts the changes of the tensor."""

    @classmethod
    def of(cls, tensor: Tensor, recipe: _Recipe) -> _Rebuilt:
        witness = tensor.detach()
        witness.data = witness.new_empty(0)  # leaves the version counter, which both share
        offset = tensor.storage_offset()
        return cls(recipe, tensor.size(), tensor.stride(), offset, witness)

    def read(self) -> Tensor:
        _check_version(self.witness, self.recipe.version, self.size)
        return self.recipe.build().as_strided(self.size, self.stride, self.offset)


_recipes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""The recipe of each tensor that has one; a tensor that dies takes its recipe along.

A tensor stays the same Python object as long as it lives. That is more than can be said of storages
and of addresses, which fake tensors do not have.
"""

_is_recording: ContextVar[bool] = ContextVar("manystream_recording", default=False)
_observer: ContextVar[Callable[[Tensor], object] | None] = ContextVar(
    "manystream_observer", default=None
)


@contextmanager
def recording() -> Iterator[None]:
    """Let the operations of a forward pass register how to rebuild their outputs.

    It may be opened for one layer after the other: what one registers, the next ones find. Without
    gradients there is nothing to keep, and nothing is recorded.
    """
    if not torch.is_grad_enabled() or _is_recording.get():
        yield
        return
    token = _is_recording.set(True)
    try:
        with torch.autograd.graph.saved_tensors_hooks(_pack, _unpack):
            yield
    finally:
        _is_recording.reset(token)


def recorded(forward: F) -> F:
    """Record the forward pass of a layer, a method, where the layer's ``records`` says so."""

    @wraps(forward)
    def run(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if not layer.records:
            return forward(layer, *args, **kwargs)
        with recording():
            return forward(layer, *args, **kwargs)

    return type_cast(F, run)


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


def register(
    output: Tensor,
    function: Callable[..., Tensor],
    *sources: Tensor,
    reads: tuple[Tensor, ...] = (),
) -> None:
    """Say that ``output`` is ``function(*sources)``, bit for bit; nothing happens unless recording.

    A backward pass that needs the output after one of these tensors was changed in place is
    refused. So register only what follows from tensors that autograd, too, would not let change.

    Args:
        output: a tensor that owns its whole storage.
        function: computes it anew, in the same memory layout, without side effects. Autocast and
            gradients are off when it runs.
        sources: the tensors it depends on; all else it needs must be small and live on.
        reads: what else it reads that may be changed in place, as a parameter is.
    """
    if not _is_recording.get():
        return
    held = tuple(_recipe_of(source) or _Kept.of(source) for source in sources)
    guarded = tuple(map(_Kept.of, reads))
    plainly = _plainly(function, output.device.type)
    _recipes[output] = _Recipe(plainly, held, guarded, output._version)


def is_recording() -> bool:
    """Tell whether a forward pass is being recorded."""
    return _is_recording.get()


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a parameter; while recording, its copy is made again in the backward pass, not kept."""
    if tensor.dtype == dtype:
        return tensor
    copy = tensor.to(dtype)
    register(copy, lambda source: source.to(dtype), tensor)
    return copy


def _recipe_of(tensor: Tensor) -> _Recipe | None:
    """Return the recipe of a tensor, or of what it is a view of, unless that was changed since."""
    owner = tensor if tensor._base is None else tensor._base
    recipe: _Recipe | None = _recipes.get(owner)
    if recipe is None or tensor.dtype != owner.dtype or tensor._version != recipe.version:
        return None
    return recipe


def _pack(tensor: Tensor) -> _Kept | _Rebuilt:
    recipe = _recipe_of(tensor)
    if recipe is None:
        _tell(tensor)
        return _Kept.for_autograd(tensor)
    recipe.will_be_used()
    return _Rebuilt.of(tensor, recipe)


def _unpack(saved: _Kept | _Rebuilt) -> Tensor:
    # Tensors that outlive their forward pass, as features may, are no reason to hold its memory.
    if _recipes:
        _recipes.clear()
    return saved.read()


def _tell(kept: Tensor) -> None:
    observer = _observer.get()
    if observer is not None:
        observer(kept)


def _plainly(function: Callable[..., Tensor], device_type: str) -> Callable[..., Tensor]:
    def run(*sources: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device_type, enabled=False):
            return function(*sources)

    return run


def _read(source: _Kept | _Recipe) -> Tensor:
    return source.build() if isinstance(source, _Recipe) else source.read()


def _check_version(tensor: Tensor, expected: int, size: torch.Size) -> None:
    """Refuse, in autograd's words, what was changed in place since it was saved."""
    if tensor._version != expected:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: a {tensor.dtype} tensor of shape {tuple(size)} is at version "
            f"{tensor._version}; expected version {expected} instead. Change it after the backward "
            "pass, or change a copy"
        )
