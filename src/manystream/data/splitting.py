"""A validation split held out of training by whole groups: recordings, rooms, scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lgamma
from typing import TYPE_CHECKING

import numpy as np

from manystream.data.problems import Printer

if TYPE_CHECKING:
    from manystream.data.table import Sample

TRAIN, VAL, TRAINVAL, TEST = "train", "val", "trainval", "test"
"""Splits of data sets that come with training and test only; val is held out of training, and
trainval is all of it."""


@dataclass(frozen=True)
class HeldOut:
    """What share of the training samples is held out for validation, and how it is drawn.

    Attributes:
        share: of the samples, between 0 and 1.
        seed: of the draw.
    """

    share: float = 0.2
    seed: int = 0

    def draw(self, targets: Sequence[int], groups: Sequence[str]) -> np.ndarray:
        """Choose whole groups, so that each class has about ``share`` of its samples among them.

        Larger groups are decided on first, each for the side that leaves the classes' shares
        nearer to what is wanted. A class that got nothing is then given its smallest group, if it
        has another one to train on. All this depends on the samples, their order and the seed only.

        Args:
            targets: class of each of the N samples.
            groups: group of each; an empty name is a group of its own.

        Returns:
            Which samples are held out, shape (N,), bool; one or more, and not all of them.
        """
        counts, member = _count(targets, groups)
        chosen = _choose(counts, self.share, np.random.default_rng(self.seed))
        _give_each_class_one(counts, chosen)
        if chosen.all() or not chosen.any():
            raise ValueError(
                f"val_share={self.share} of {len(targets)} training samples in {len(counts)} "
                "groups leaves one side empty; expected more groups, or another share"
            )
        return np.asarray(chosen[member])

    def divide(
        self,
        samples: Sequence[Sample],
        classes: Sequence[str],
        wanted: Sequence[str],
        report: Printer,
    ) -> list[Sample]:
        """Hold val out of the samples of train, if one of these splits is wanted.

        Says how much of validation training would have seen, and would have with a random draw.
        ``classes`` are those that samples of train may be of.
        """
        if not {TRAIN, VAL} & set(wanted):
            return list(samples)
        train = [x for x in samples if x.split == TRAIN]
        groups = [x.group for x in train]
        held_out = self.draw([classes.index(x.label) for x in train], groups)
        if VAL in wanted:
            report(_said(groups, held_out))
        names = iter([VAL if out else TRAIN for out in held_out])
        return [x._replace(split=next(names)) if x.split == TRAIN else x for x in samples]


def leak(groups: Sequence[str], held_out: np.ndarray) -> float:
    """Return the share of the held-out samples whose group is in training too.

    ``groups`` are those of the N samples, an empty name being a group of its own, ``held_out``
    says which are held out, shape (N,), bool, one or more of them.
    """
    training = {group for group, out in zip(groups, held_out, strict=True) if group and not out}
    validation = [group for group, out in zip(groups, held_out, strict=True) if out]
    return sum(group in training for group in validation) / len(validation)


def random_leak(groups: Sequence[str], num_held_out: int) -> float:
    r"""Return the :func:`leak` to expect if n single samples were held out at random.

    A sample of a group of g does not leak if the g − 1 others are held out with it:

    .. math:: 1 - \frac1N \sum_i \binom{N - g_i}{n - g_i} \Big/ \binom{N - 1}{n - 1}

    Example:
        >>> leaked = random_leak(["a", "a", "b", "b"], 2)  # 1 of the 3 others must be drawn too
        >>> round(leaked, 6)
        0.666667
    """
    total = len(groups)
    _, member = np.unique(_distinct(groups), return_inverse=True)
    sizes = np.bincount(member)[member]
    safe = [_choices(total - g, num_held_out - g) for g in sizes.tolist()]
    return 1 - float(np.mean(np.exp(np.array(safe) - _choices(total - 1, num_held_out - 1))))


def _said(groups: Sequence[str], held_out: np.ndarray) -> str:
    number, total = int(held_out.sum()), len(held_out)
    drawn = f"val: {number} of {total} training samples ({number / total:.1%}) are held out"
    if not any(groups):
        return f"{drawn}, one by one: the data does not say which show the same scene"
    by_chance = random_leak(groups, number)
    return (
        f"{drawn} by scene: {leak(groups, held_out):.1%} of them show a scene that is in training "
        f"(drawn one by one it would be {by_chance:.1%})"
    )


def _choices(n: int, k: int) -> float:
    """Return the logarithm of the binomial coefficient; of 0 outside 0 ≤ k ≤ n."""
    if not 0 <= k <= n:
        return -np.inf
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def _distinct(groups: Sequence[str]) -> np.ndarray:
    return np.array([group or f"\0{number}" for number, group in enumerate(groups)])


def _count(targets: Sequence[int], groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Count samples by group and class, (G, classes), and number each sample's group, (N,)."""
    names, member = np.unique(_distinct(groups), return_inverse=True)
    counts = np.zeros((len(names), max(targets) + 1), dtype=np.int64)
    np.add.at(counts, (member, np.asarray(targets)), 1)
    return counts, member


def _choose(counts: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    totals = counts.sum(axis=0)
    weight = 1 / np.maximum(totals, 1)  # A sample counts for more in a smaller class.
    missing = share * totals
    shuffled = rng.permutation(len(counts))
    order = shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]
    chosen = np.zeros(len(counts), dtype=bool)
    for group in order:
        after = missing - counts[group]
        if np.square(after * weight).sum() < np.square(missing * weight).sum():
            chosen[group], missing = True, after
    return chosen


def _give_each_class_one(counts: np.ndarray, chosen: np.ndarray) -> None:
    for number in np.flatnonzero(counts.sum(axis=0)):
        having = np.flatnonzero(counts[:, number])
        if chosen[having].any():
            continue
        for group in having[np.argsort(counts[having].sum(axis=1), kind="stable")]:
            chosen[group] = True
            trained = counts[~chosen].sum(axis=0)
            if (trained[counts[group] > 0] > 0).all():
                break
            chosen[group] = False
