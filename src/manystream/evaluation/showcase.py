"""Samples to look at: their pictures, what networks say of them as sensors are switched off."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from io import BytesIO
from itertools import cycle
from operator import or_
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from manystream.batch import StreamBatch
from manystream.data.contact_sheet import picture
from manystream.data.preprocessing import Preprocessing
from manystream.data.streams import StreamSpec
from manystream.evaluation.inference import answers_by_subset, in_parts, inferring, read
from manystream.evaluation.measurement import numbered_subsets, take
from manystream.evaluation.plots import COLORS, first_quantity
from manystream.models import StreamNetwork
from manystream.tasks import Answer, Task

if TYPE_CHECKING:
    from manystream.evaluation.report import Run


@dataclass(frozen=True)
class ShownSample:
    """One sample, and what a network says of it.

    Attributes:
        truth: its target in words.
        pictures: a PNG of each stream as the network sees it; None where the sample lacks it.
        answers: by subset of the streams that it has, the bits of a number.
    """

    truth: str
    pictures: tuple[bytes | None, ...]
    answers: dict[int, Answer]

    def answer(self, subset: int) -> Answer | None:
        """Give the answer from those streams of a subset that the sample has, if it has any."""
        return self.answers.get(subset & reduce(or_, self.answers))


@dataclass(frozen=True)
class Showcase:
    """Some samples as one network sees them.

    Attributes:
        stream_names: the network's streams.
        samples: those that are shown.
    """

    stream_names: tuple[str, ...]
    samples: tuple[ShownSample, ...]


def show_samples(
    network: StreamNetwork,
    task: Task,
    loader: Iterable[Any],
    *,
    count: int = 12,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    accelerator: str = "auto",
) -> Showcase:
    """Ask a network about a loader's first samples with every subset of the streams they have.

    Args:
        network: the network.
        task: what it was trained on; its ``answers`` are shown.
        loader: batches as :func:`manystream.streams.read_batch` takes them, with targets.
        count: how many samples.
        preprocessing: how the images were prepared, also as plain values. It tells colours and
            depth; without it, values are stretched to what can be seen.
        accelerator: device, see :func:`manystream.evaluation.inference.device_of`.

    Raises:
        ValueError: if a batch does not fit, or there is none.
    """
    if isinstance(preprocessing, Mapping):
        preprocessing = Preprocessing.from_dict(preprocessing)
    samples: list[ShownSample] = []
    with inferring(network, accelerator) as device:
        for batch in read(network, loader, device, task=task):
            for part in in_parts(batch):
                samples += _shown(network, task, part, preprocessing)
            if len(samples) >= count:
                break
    if not samples:
        raise ValueError("the loader has no sample; expected at least one")
    return Showcase(tuple(network.stream_names), tuple(samples[:count]))


def _shown(
    network: StreamNetwork, task: Task, batch: StreamBatch, preprocessing: Preprocessing | None
) -> list[ShownSample]:
    pictures: list[list[bytes | None]] = [[None] * network.num_streams for _ in range(len(batch))]
    for stream, images in enumerate(batch.streams):
        for sample, image in zip(batch.presence.samples(stream).tolist(), images, strict=True):
            pictures[sample][stream] = _png(_visible(image.cpu(), stream, preprocessing))
    answers: list[dict[int, Answer]] = [{} for _ in range(len(batch))]
    for subset, (output, samples) in answers_by_subset(network, batch).items():
        given = task.answers(task.predict(output), take(batch.target, samples))
        for sample, answer in zip(samples.tolist(), given, strict=True):
            answers[sample][subset] = answer
    truths = task.describe_target(batch.target)
    return [*map(ShownSample, truths, map(tuple, pictures), answers)]


def _visible(image: Tensor, stream: int, preprocessing: Preprocessing | None) -> np.ndarray:
    """Undo a normalisation, and give what can be seen, from (C, H, W) to (H, W, 3), uint8."""
    pixels = image.float().permute(1, 2, 0).numpy()
    if preprocessing is None:
        return picture(pixels, StreamSpec("", len(image))).pixels
    spec, statistics = preprocessing.streams[stream], preprocessing.statistics[stream]
    mean, std = (np.array(values, np.float32) for values in (statistics.mean, statistics.std))
    stored = pixels * std + mean
    if spec.kind == "depth":
        stored = np.where(pixels == 0, 0, stored)  # 0 is no reading, before and after
    elif spec.kind == "color":
        stored = stored.round().clip(0, 255).astype(np.uint8)
    return picture(stored, spec).pixels


def _png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def page_of(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Lay out what the page shows of runs that have samples; None where none has.

    A network that has not all of the page's streams is asked with those that it has.

    Returns:
        ``streams``, ``samples`` (their truth, and a picture of each stream in base64 or None) and
        ``runs``: what a network scores and answers, by the bits of the page's subsets.

    Raises:
        ValueError: if the runs do not show the same samples.
    """
    shown = [(run, run.showcase) for run in runs if run.showcase is not None]
    if not shown:
        return None
    truths = {tuple(sample.truth for sample in showcase.samples) for _, showcase in shown}
    if len(truths) > 1:
        raise ValueError("runs show different samples; expected the first ones of one loader")
    streams = list(dict.fromkeys(name for _, showcase in shown for name in showcase.stream_names))
    pictures = {
        name: [sample.pictures[number] for sample in showcase.samples]
        for _, showcase in reversed(shown)
        for number, name in enumerate(showcase.stream_names)
    }
    samples = [
        {"truth": truth, "pictures": [_base64(pictures[name][i]) for name in streams]}
        for i, truth in enumerate(truths.pop())
    ]
    colors = zip(runs, cycle(COLORS), strict=False)
    color_of = {run.name: color for run, color in colors}
    of_runs = [
        {"name": run.name, "color": color_of[run.name], "subsets": _by_subset(run, case, streams)}
        for run, case in shown
    ]
    return {"streams": streams, "samples": samples, "runs": of_runs}


def _by_subset(run: Run, showcase: Showcase, streams: Sequence[str]) -> dict[int, dict[str, Any]]:
    """Lay out a run's score and answers for each subset of the page's streams that it can use."""
    found = {}
    for subset in numbered_subsets(streams).values():
        kept = [n for n in showcase.stream_names if subset >> streams.index(n) & 1]
        if kept:
            own = numbered_subsets(showcase.stream_names)[" + ".join(kept)]
            answers = [sample.answer(own) for sample in showcase.samples]
            found[subset] = {**_score(run, " + ".join(kept)), "answers": answers}
    return found


def _score(run: Run, subset: str) -> dict[str, Any]:
    metric, quantity = first_quantity([run])
    values = run.subsets.shown.get(subset)
    if values is None:
        return {"score": "not measured", "share": None, "note": ""}
    chance = values.get(f"{metric}_chance")
    guessed = "" if chance is None else f", chance {quantity.text(chance)}"
    return {
        "score": quantity.text(values[metric]),
        "share": values[metric] if quantity.is_share else None,
        "chance": chance if quantity.is_share else None,
        "note": f"{quantity.title} on {values['num_samples']:.0f} samples{guessed}",
    }


def _base64(png: bytes | None) -> str | None:
    return None if png is None else base64.b64encode(png).decode()
