"""Brain MRI with real absence: is a tumour in the slice, whatever sequences there are?

Five folds by patient, each tested once. Every way to train is measured with each of the seven
subsets of three sequences on the same slices, those that have all three; beside it stand networks
that were trained for one subset alone. Differences are bootstrapped by patient.

The data (``lgg_mri.npz``, 42 patients) are for measurements only and are no part of the project.
Run: python benchmarks/brain_mri.py --data ../shared/data/lgg_mri.npz
"""

from __future__ import annotations

import itertools
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torchmetrics.functional.classification import binary_auroc

from harness.results import Row, load, parser_of, save
from harness.tables import console, number, table_of

STREAMS = ("pre", "flair", "post")
SUBSETS = [s for size in (3, 2, 1) for s in itertools.combinations(STREAMS, size)]
FOLDS = 5
RECIPE: dict[str, Any] = {
    "epochs": 24,
    "schedule": "one_cycle",
    "learning_rate": 2e-3,
    "weight_decay": 0.05,
    "label_smoothing": 0.1,
    "gradient_clip": 1.0,
    "progress": False,
}
IMAGES: dict[str, Any] = {"image_size": 48, "batch_size": 32, "num_workers": 0}
VARIED: dict[str, Any] = {"scale": (0.8, 1.0), "flip": 0.5, "color": 0.1}


Array = Any
"""Of numpy."""


@dataclass(frozen=True)
class Training:
    """A way to train.

    Attributes:
        streams: sequences that the network has.
        fit: options beside the recipe's.
        network: arguments of ``create_model`` beside the streams.
        filled: whether an absent image is given as zeros and counts as present, in training and
            in the test.
    """

    streams: tuple[str, ...] = STREAMS
    fit: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    filled: bool = False


DROPOUT: dict[str, Any] = {
    "modality_dropout": True,
    "modality_dropout_rate": 0.48,
    "modality_dropout_ramp": 9,
}
DROPOUT |= {"modality_dropout_max_blanked": 2}

TRAININGS: dict[str, Training] = {
    "every subset": Training(fit={"subsets": "all"}, network={"subset_norms": True}),
    "every subset, group norm": Training(
        fit={"subsets": "all"}, network={"family": "li_net3_soma"}
    ),
    "modality dropout": Training(fit=DROPOUT),
    "no dropout": Training(),
    "zero filling": Training(filled=True),
    **{
        f"alone: {' + '.join(s)}": Training(
            s, network={"family": "single_stream" if len(s) == 1 else "li_net3"}
        )
        for s in SUBSETS[1:]
    },
}


def main(words: Sequence[str] | None = None) -> None:
    """Train all, print the tables, keep the numbers."""
    parser = parser_of(__doc__, "brain_mri.json")
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "lgg_mri.npz"
    parser.add_argument("--data", type=Path, default=default, help="the file of images")
    parser.add_argument("--seeds", type=int, default=5, help="networks of each way and fold (5)")
    parser.add_argument("--processes", type=int, default=max((os.cpu_count() or 2) // 2, 1))
    parser.add_argument("--only", nargs="+", help=f"some of: {', '.join(TRAININGS)}")
    parser.add_argument("--epochs", type=int, default=RECIPE["epochs"])
    parser.add_argument("--accelerator", default="auto")
    options = parser.parse_args(words)
    if options.show is None and not options.data.is_file():
        sys.exit(f"no file {options.data}; this measurement needs the MRI set, name it with --data")
    rows = load(options.show) if options.show else measure(options)
    show(rows)


def measure(options: Namespace) -> list[Row]:
    """Train and test every way with every seed and fold, and save."""
    names = options.only or list(TRAININGS)
    given = (options.data, {"epochs": options.epochs, "accelerator": options.accelerator})
    data, scores, rows = truth(options.data), dict[tuple[str, int], Array](), list[Row]()
    context = get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        for seed in range(options.seeds):
            jobs = list(itertools.product([seed], names, range(FOLDS)))
            started = {pool.submit(train_and_test, job, *given): job for job in jobs}
            for done in as_completed(started):
                _, name, fold = started[done]
                tested, found = done.result()
                nothing = np.full((len(data["target"]), len(SUBSETS)), np.nan, np.float32)
                scores.setdefault((name, seed), nothing)[tested] = found
                print(f"seed {seed}, {name}, fold {fold}", flush=True)
            rows = summarised(scores, data)
            save(options.out, rows, options.commit)
    return rows


def train_and_test(
    job: tuple[int, str, int], path: Path, changes: Mapping[str, Any]
) -> tuple[Array, Array]:
    """Train one network on four folds.

    Returns:
        Numbers of the slices of the fifth, and the probability of a tumour with every subset that
        the network can be given, (n, 7); NaN where a slice, or the network, lacks all of it.
    """
    import manystream as ms

    seed, name, fold = job
    training, data = TRAININGS[name], truth(path)
    torch.set_num_threads(1)
    mine = [STREAMS.index(s) for s in training.streams]
    present = np.ones_like(data["present"]) if training.filled else data["present"]
    tested = np.flatnonzero((data["fold"] == fold) & present[:, mine].any(axis=1))
    images = np.where(data["present"][:, None, None, :], data["images"], 0)
    table = ms.data.arrays(
        {STREAMS[m]: np.ascontiguousarray(images[..., m]) for m in mine},
        data["target"].tolist(),
        classes=["no tumour", "tumour"],
        present={STREAMS[m]: present[:, m] for m in mine},
        kinds=dict.fromkeys(training.streams, "color"),
        splits=["val" if f == fold else "train" for f in data["fold"]],
        groups=[str(p) for p in data["patient"]],
    )
    loaded = ms.data.loaders(
        table,
        seed=seed,
        report=lambda *_: None,
        accelerator=changes["accelerator"],
        augmentation=ms.data.Augmentation(**VARIED),
        **IMAGES,
    )
    torch.manual_seed(seed)
    layout = {"depth": 18, "width": 0.25, "num_classes": 2, **training.network}
    model = ms.create_model(streams=loaded.in_channels, **layout)
    model.fit(loaded.train, None, seed=seed, **{**RECIPE, **training.fit, **changes})
    inputs = [_in_order(loaded.val, m) for m in range(len(mine))]
    return tested, _scores(model, training, inputs, present[tested], mine)


def _in_order(loader: Any, stream: int) -> torch.Tensor:
    """Return a stream's images of all samples; zero where there is none."""
    images = []
    for batch in loader:
        rows = batch.streams[stream].cpu()
        full = rows.new_zeros(len(batch), *rows.shape[1:])
        images.append(full.index_copy(0, batch.presence.samples(stream), rows))
    return torch.cat(images)


@torch.no_grad()
def _scores(
    model: Any, training: Training, inputs: list[torch.Tensor], present: Array, mine: list[int]
) -> Array:
    network = model.network.cpu().eval()
    found = np.full((len(present), len(SUBSETS)), np.nan, np.float32)
    for number_of, subset in enumerate(SUBSETS):
        kept = torch.tensor([STREAMS[m] in subset for m in mine])
        mask = torch.from_numpy(present[:, mine]) & kept
        if training.filled:
            shown = [x if k else torch.zeros_like(x) for x, k in zip(inputs, kept, strict=True)]
            output = network(shown)
            found[:, number_of] = output.softmax(1)[:, 1].numpy()
            continue
        some = mask.any(dim=1)
        if set(subset) <= set(training.streams) and some.any():
            output = network([x[some] for x in inputs], mask[some])
            found[some.numpy(), number_of] = output.softmax(1)[:, 1].numpy()
    return found


@cache
def truth(path: Path) -> dict[str, Array]:
    """Return images, which are there, patients, their folds, and whether there is a tumour."""
    with np.load(path) as file:
        data = dict(file)
    patients = np.unique(data["patient"])
    order = np.random.default_rng(0).permutation(len(patients))
    fold_of = dict(zip(patients[order].tolist(), itertools.cycle(range(FOLDS)), strict=False))
    fold = np.array([fold_of[p] for p in data["patient"].tolist()])
    target = data["mask"].any((1, 2)).astype(np.int64)
    return {**data, "fold": fold, "target": target}


def summarised(scores: Mapping[tuple[str, int], Array], data: Mapping[str, Array]) -> list[Row]:
    """Return for each way its AUC by subset, and what lies between it and other ways."""
    seeds = sorted({seed for _, seed in scores})
    names = list(dict.fromkeys(name for name, _ in scores))
    complete = data["present"].all(1)
    rows = []
    for name in names:
        of_seeds = [scores[name, seed] for seed in seeds]
        row: Row = {"name": name, "seeds": len(seeds), "slices": int(complete.sum())}
        for j, subset in enumerate(SUBSETS):
            if np.isnan(of_seeds[0][complete, j]).any():
                continue
            auc = [mean_auc(s[:, j], data, complete) for s in of_seeds]
            row[" + ".join(subset)] = fmean(auc)
            row[f"{' + '.join(subset)} sd"] = stdev(auc) if len(auc) > 1 else 0.0
        lacking = ~complete
        as_they_are = [s[lacking, 0] for s in of_seeds]
        if not np.isnan(as_they_are).any():
            row["patients that lack some"] = fmean(
                auc_of(s, data["target"][lacking]) for s in as_they_are
            )
        rows.append(row)
    return rows + _differences(scores, names, seeds, data, complete)


def _differences(
    scores: Mapping[tuple[str, int], Array],
    names: Sequence[str],
    seeds: Sequence[int],
    data: Mapping[str, Array],
    complete: Array,
) -> list[Row]:
    """Set every way beside the networks for one subset and beside zero filling."""
    rows: list[Row] = []
    several = [name for name in names if not name.startswith("alone")]
    for name in several:
        for j, subset in enumerate(SUBSETS):
            others = {"alone": f"alone: {' + '.join(subset)}", "zero filling": "zero filling"}
            for against, other in others.items():
                if other not in names or other == name:
                    continue
                pairs = [(scores[name, s][:, j], scores[other, s][:, j]) for s in seeds]
                low, mid, high = bootstrapped(pairs, data, complete)
                rows.append(
                    {
                        "name": name,
                        "against": against,
                        "subset": " + ".join(subset),
                        "difference": mid,
                        "low": low,
                        "high": high,
                    }
                )
    return rows


def auc_of(score: Array, target: Array) -> float:
    """Return the area under the receiver operating characteristic."""
    return float(binary_auroc(torch.from_numpy(score), torch.from_numpy(target)))


def mean_auc(score: Array, data: Mapping[str, Array], chosen: Array) -> float:
    """Return the mean over folds, whose networks are others."""
    of_folds = [chosen & (data["fold"] == fold) for fold in range(FOLDS)]
    return fmean(auc_of(score[own], data["target"][own]) for own in of_folds)


def bootstrapped(
    pairs: Sequence[tuple[Array, Array]],
    data: Mapping[str, Array],
    chosen: Array,
    draws: int = 200,
) -> tuple[float, float, float]:
    """Return a difference of AUC, mean over seeds, and its 95% interval over draws of patients."""
    rows_of = {
        fold: [
            np.flatnonzero(chosen & (data["patient"] == p))
            for p in np.unique(data["patient"][chosen & (data["fold"] == fold)])
        ]
        for fold in range(FOLDS)
    }

    def difference(pick: Callable[[int], Any]) -> float:
        found = []
        for rows in rows_of.values():
            drawn = np.concatenate([rows[p] for p in pick(len(rows))])
            target = data["target"][drawn]
            found += [_rank_auc(a[drawn], target) - _rank_auc(b[drawn], target) for a, b in pairs]
        return fmean(found)

    rng = np.random.default_rng(0)
    all_draws = [difference(lambda n: rng.integers(n, size=n)) for _ in range(draws)]
    low, high = np.percentile(all_draws, [2.5, 97.5])
    return float(low), difference(range), float(high)


def _rank_auc(score: Array, target: Array) -> float:
    order = np.argsort(score, kind="stable")
    _, first, number_of = np.unique(score[order], return_index=True, return_counts=True)
    ranks = np.empty(len(score))
    ranks[order] = np.repeat(first + (number_of + 1) / 2, number_of)
    positive = target.sum()
    return float(
        (ranks[target == 1].sum() - positive * (positive + 1) / 2)
        / (positive * (len(target) - positive))
    )


def show(rows: Sequence[Row]) -> None:
    """Print AUC by subset, then the differences."""
    columns = {" + ".join(s): number(" + ".join(s), ".3f") for s in SUBSETS}
    columns["lacking"] = number("patients that lack some", ".3f")
    ways = [row for row in rows if "against" not in row]
    console.print(table_of(ways, columns, "area under the curve, mean over folds and seeds"))
    differences = {
        "against": lambda row: row["against"],
        "subset": lambda row: row["subset"],
        "difference": number("difference", "+.3f"),
        "from": number("low", "+.3f"),
        "to": number("high", "+.3f"),
    }
    console.print(table_of([r for r in rows if "against" in r], differences, "by patient, 95%"))


if __name__ == "__main__":
    main()
