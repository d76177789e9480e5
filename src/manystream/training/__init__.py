"""Training, evaluation and prediction through Lightning; only what is ours is here."""

from manystream.training.evaluate import evaluate, evaluate_subsets
from manystream.training.fit import fit
from manystream.training.history import History
from manystream.training.options import FitOptions
from manystream.training.predict import predict

__all__ = ["FitOptions", "History", "evaluate", "evaluate_subsets", "fit", "predict"]
