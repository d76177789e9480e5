"""How well a network holds: by class, with every subset of its streams, with failing sensors."""

from manystream.extras import train_extra

with train_extra():
    from manystream.evaluation.conditions import EvaluationOptions, Robustness, evaluate_conditions
    from manystream.evaluation.inference import predict
    from manystream.evaluation.per_class import ClassTable, evaluate_classes
    from manystream.evaluation.subsets import evaluate, evaluate_subsets

__all__ = [
    "ClassTable",
    "EvaluationOptions",
    "Robustness",
    "evaluate",
    "evaluate_classes",
    "evaluate_conditions",
    "evaluate_subsets",
    "predict",
]
