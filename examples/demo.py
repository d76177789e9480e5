"""Train two small RGB-D networks, with and without modality dropout, and blank their sensors.

Takes a few minutes on two cores. Writes `demo/report.html`.
"""

from dataclasses import asdict, replace
from pathlib import Path

import torch

import manystream as ms
from manystream.cli.output import print_subsets
from manystream.data import DataOptions, training_data
from manystream.evaluation.report import Run, write_report
from manystream.tasks import Classification
from manystream.training import FitOptions

OUT = Path("demo")
DATA = DataOptions(image_size=48, num_scenes=3000, augment=False)
PLAIN = FitOptions(epochs=16, learning_rate=3e-3)
ROBUST = replace(
    PLAIN,
    modality_dropout=True,
    modality_dropout_rate=[0.4, 0.2],
    modality_dropout_start=3,
    modality_dropout_ramp=6,
)


def main() -> None:
    """Train both networks on the same scenes, then print and write the comparison."""
    torch.set_num_threads(1)  # so small a network gains nothing from more; the loaders do
    print("RGB-D scenes of 10 things are rendered as they are needed; nothing is downloaded.")
    print("Both sensors show what the thing is: one can stand in for the other.")
    runs = [train("without modality dropout", PLAIN), train("with modality dropout", ROBUST)]
    print_subsets({run.name: run.subsets for run in runs}, runs[0].task.evaluation_quantities())
    page = write_report(runs, OUT, "manystream demo: what happens when a sensor is missing")
    print(f"\nThe report, with curves and bars, is {page}")


def train(name: str, options: FitOptions) -> Run:
    """Train one network and measure it with every subset of its streams."""
    print(f"\nTraining {name}")
    data = training_data(DATA)
    torch.manual_seed(options.seed)  # both begin with the same weights
    task = Classification(classes=data.classes)
    model = ms.create_model(streams=data.in_channels, task=task, width=0.25)
    history = model.fit(data.train, data.val, options)
    return Run(name, task, history, model.evaluate_subsets(data.val), asdict(options))


if __name__ == "__main__":
    main()
