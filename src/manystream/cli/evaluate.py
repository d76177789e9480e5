"""`manystream evaluate`: measure a trained model on a split."""

from __future__ import annotations

from manystream.classifier import load_model
from manystream.cli.options import EvaluateOptions
from manystream.cli.output import evaluation_loader, print_subsets
from manystream.training import evaluate_subsets


def evaluate(options: EvaluateOptions) -> None:
    """Measure every subset of the streams, or the one that is left."""
    model = load_model(options.model)
    loader = evaluation_loader(model, options.model, options.data)
    if options.blanked_streams is None:
        measured = evaluate_subsets(model, loader, progress=True)
    else:
        blanked = options.blanked_streams
        left = " + ".join(n for n in model.stream_names if n not in blanked)
        measured = {left: model.evaluate(loader, blanked_streams=blanked, progress=True)}
    print_subsets({str(options.model): measured})
