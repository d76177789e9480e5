from manystream.evaluation.conditions import Robustness as Robustness
from manystream.evaluation.conditions import evaluate_conditions as evaluate_conditions
from manystream.evaluation.inference import predict as predict
from manystream.evaluation.options import EvaluationOptions as EvaluationOptions
from manystream.evaluation.per_class import ClassTable as ClassTable
from manystream.evaluation.per_class import evaluate_classes as evaluate_classes
from manystream.evaluation.subsets import evaluate as evaluate
from manystream.evaluation.subsets import evaluate_subsets as evaluate_subsets
