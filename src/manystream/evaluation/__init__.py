"""How well a network holds: by class, with every subset of its streams, with failing sensors."""

from manystream.lazy import load_when_asked

_MODULES = {
    "ClassTable": "per_class",
    "EvaluationOptions": "options",
    "Robustness": "conditions",
    "Showcase": "showcase",
    "Subsets": "measurement",
    "answers_by_subset": "inference",
    "evaluate": "subsets",
    "evaluate_classes": "per_class",
    "evaluate_conditions": "conditions",
    "evaluate_subsets": "subsets",
    "predict": "inference",
    "show_samples": "showcase",
}

__all__ = [*_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]

load_when_asked(__name__, _MODULES)
