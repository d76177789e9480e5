"""Train two small RGB-D networks, switch their sensors off, and write a page on which to see it.

One is trained as usual, with everything present; the other sees every sample with every subset of
its sensors. A process trains each, three to four minutes on two cores. Writes `demo/report.html`.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

import manystream as ms
from manystream.cli.output import print_subsets
from manystream.data import TrainingData
from manystream.evaluation import EvaluationOptions
from manystream.evaluation.report import Run, all_verdicts, write_report
from manystream.tasks import Classification
from manystream.training import FitOptions

OUT = Path("demo")
SCENES = {"train": 3000, "val": 1000}
IMAGE_SIZE = 48
ORDINARY = FitOptions(  # as in benchmarks/robustness.py, which has five seeds
    epochs=16,
    schedule="one_cycle",
    learning_rate=2e-3,
    weight_decay=1e-3,
    label_smoothing=0.1,
    gradient_clip=1.0,
    progress=False,
)
EVERY_SUBSET = replace(ORDINARY, subsets="all", progress=True)
TRAININGS = {"ordinary training": ORDINARY, "every-subset training": EVERY_SUBSET}
CONDITIONS = EvaluationOptions(noise_levels=[0.5, 1.0, 2.0], darkness_levels=[0.5, 1.0])


def main() -> None:
    """Train both networks at the same time, then print and write the comparison."""
    print("RGB-D scenes of 10 things are rendered; nothing is downloaded.")
    print("Both sensors show what the thing is: one can stand in for the other.")
    print("Two networks are trained, in as many steps; the bar is of every-subset training.\n")
    with ProcessPoolExecutor(len(TRAININGS), get_context("spawn")) as processes:
        runs = list(processes.map(train, TRAININGS))
    print_subsets({run.name: run.subsets for run in runs}, runs[0].task.evaluation_quantities())
    print(*all_verdicts(runs), sep="\n")
    page = write_report(runs, OUT, "manystream demo: what happens when a sensor is missing")
    print(
        f"\nSwitch the sensors off yourself, and see noise and darkness: {page.resolve().as_uri()}"
    )


def train(name: str) -> Run:
    """Train one network, measure it as its sensors fail, and ask it about some samples."""
    torch.set_num_threads(1)  # the other network is trained on the other core
    options, data = TRAININGS[name], load_scenes()
    torch.manual_seed(options.seed)
    task = Classification(classes=data.classes)
    model = ms.create_model(
        streams=data.in_channels, task=task, width=0.25, subset_norms=options.subsets is not None
    )
    history = model.fit(data.train, data.val, options)
    robust = model.evaluate_conditions(data.val, CONDITIONS, preprocessing=data.preprocessing)
    showcase = model.show_samples(data.val, preprocessing=data.preprocessing)
    config = {"scenes": SCENES, "image_size": IMAGE_SIZE, "fit": asdict(options)}
    return Run(name, task, history, robust.subsets, config, None, robust, showcase=showcase)


def load_scenes() -> TrainingData:
    """Render all scenes once, instead of in every epoch, and feed them from memory."""
    scenes = ms.data.scenes(SCENES, IMAGE_SIZE)
    images = {
        spec.name: np.stack([scenes.read(i, stream) for i in range(len(scenes))])
        for stream, spec in enumerate(scenes.streams)
    }
    table = ms.data.arrays(images, scenes.labels(), classes=scenes.classes, splits=scenes.splits)
    return ms.data.loaders(
        table, image_size=IMAGE_SIZE, augment=False, num_workers=0, report=lambda line: None
    )


if __name__ == "__main__":
    main()
