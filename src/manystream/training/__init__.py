"""Training, evaluation and prediction through Lightning; only what is ours is here."""

from manystream.extras import train_extra

with train_extra():
    from manystream.training.distributed import average_gradients
    from manystream.training.evaluation.conditions import ConditionOptions, evaluate_conditions
    from manystream.training.evaluation.evaluate import evaluate, evaluate_subsets
    from manystream.training.evaluation.per_class import ClassTable, evaluate_classes
    from manystream.training.evaluation.robustness import Robustness
    from manystream.training.fit import fit
    from manystream.training.memory.batch_size import find_batch_size
    from manystream.training.memory.out_of_memory import StepOutOfMemory
    from manystream.training.options import FitOptions
    from manystream.training.predict import predict
    from manystream.training.reports.history import History

__all__ = [
    "ClassTable",
    "ConditionOptions",
    "FitOptions",
    "History",
    "Robustness",
    "StepOutOfMemory",
    "average_gradients",
    "evaluate",
    "evaluate_classes",
    "evaluate_conditions",
    "evaluate_subsets",
    "find_batch_size",
    "fit",
    "predict",
]
