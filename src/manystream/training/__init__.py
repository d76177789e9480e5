"""Training through Lightning; only what is ours is here."""

from manystream.lazy import load_when_asked

_MODULES = {
    "FitOptions": "options",
    "History": "history",
    "StepOutOfMemory": "out_of_memory",
    "average_gradients": "distributed",
    "find_batch_size": "batch_size",
    "fit": "fit",
}

__all__ = [*_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]

load_when_asked(__name__, _MODULES)
