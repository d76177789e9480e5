"""Training, evaluation and prediction through Lightning; only what is ours is here."""

from manystream.training.batch_size import find_batch_size
from manystream.training.conditions import ConditionOptions, evaluate_conditions
from manystream.training.evaluate import evaluate, evaluate_subsets
from manystream.training.fit import fit
from manystream.training.history import History
from manystream.training.options import FitOptions
from manystream.training.out_of_memory import StepOutOfMemory
from manystream.training.per_class import ClassTable, evaluate_classes
from manystream.training.predict import predict
from manystream.training.robustness import Robustness

__all__ = [
    "ClassTable",
    "ConditionOptions",
    "FitOptions",
    "History",
    "Robustness",
    "StepOutOfMemory",
    "evaluate",
    "evaluate_classes",
    "evaluate_conditions",
    "evaluate_subsets",
    "find_batch_size",
    "fit",
    "predict",
]
