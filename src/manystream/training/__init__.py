"""Training through Lightning; only what is ours is here."""

from manystream.extras import train_extra

with train_extra():
    from manystream.training.batch_size import find_batch_size
    from manystream.training.distributed import average_gradients
    from manystream.training.fit import fit
    from manystream.training.history import History
    from manystream.training.options import FitOptions
    from manystream.training.out_of_memory import StepOutOfMemory

__all__ = [
    "FitOptions",
    "History",
    "StepOutOfMemory",
    "average_gradients",
    "find_batch_size",
    "fit",
]
