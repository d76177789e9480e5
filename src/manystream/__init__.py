"""Networks on several image streams that survive a missing sensor and train in less memory.

Importing the package loads nothing, not even torch: each public name is loaded when it is first
asked for. ``__init__.pyi`` tells type checkers the same names.
"""

from manystream.lazy import load_when_asked

_MODULES = {
    "GraphedStep": "graphs",
    "ModalityDropout": "dropout",
    "Presence": "presence",
    "StreamBatch": "batch",
    "StreamModel": "model",
    "StreamResNet": "models",
    "create_model": "model",
    "load_model": "model",
}

_ROOMS = (
    "data",
    "evaluation",
    "functional",
    "graphs",
    "layers",
    "memory",
    "models",
    "tasks",
    "training",
)

__all__ = [*_MODULES, *_ROOMS]  # pyright: ignore[reportUnsupportedDunderAll]

load_when_asked(__name__, {**_MODULES, "__version__": "_version"}, rooms=_ROOMS, needs_extra=False)
