import json

import numpy as np
import pytest

from manystream.data.checks import check
from manystream.data.image import UnreadableImageError
from manystream.data.scenes import scenes
from tests.data.builders import DEPTH, RGB, table_of


def image(seed: int, height=12, width=16, channels=3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(1, 256, (height, width, channels), dtype=np.uint8)


def depth(seed: int, height=12, width=16) -> np.ndarray:
    return image(seed, height, width, 1).astype(np.uint16) * 10


def table(**splits):
    """A table of splits, each samples or samples and their targets."""
    parts = {name: of if isinstance(of, tuple) else (of, None) for name, of in splits.items()}
    samples = [sample for of, _ in parts.values() for sample in of]
    targets = [
        target
        for of, chosen in parts.values()
        for target in chosen or [i % 2 for i in range(len(of))]
    ]
    names = [name for name, (of, _) in parts.items() for _ in of]
    return table_of((RGB, DEPTH), samples, targets, splits=names)


def clean(first: int = 0) -> list[list[np.ndarray]]:
    return [[image(first + i), depth(first + 100 + i)] for i in range(4)]


def found(samples, targets=None, **others) -> list:
    """Kind, harm, places and detail of all that is found."""
    report = check(table(train=(samples, targets), **others), smallest_class=1)
    return [(f.kind, f.harmful, f.where, f.detail) for f in report.found]


def test_nothing_is_found_in_a_clean_set():
    assert found(clean(), val=clean(1000)) == []
    rendered = scenes({"train": 24, "val": 12}, 16)
    rendered = rendered.without({(24 + i, i % 2) for i in range(6)})
    report = check(rendered, smallest_class=2)
    assert report.found == ()
    assert report.splits["val"] == {
        "samples": 12,
        "images": 18,
        "absent": {"rgb": 3, "depth": 3},
    }


def test_an_unreadable_image():
    samples = clean()
    samples[1][0] = UnreadableImageError("a/b.png", "it is torn")
    assert found(samples) == [("unreadable", True, ("rgb/1",), "it is torn")]


def test_values_and_channels_that_do_not_fit():
    samples = clean()
    samples[0][0] = image(0, channels=1)
    samples[2][0] = np.full((12, 16, 3), np.nan, np.float32)
    assert [f[2:] for f in found(samples)] == [
        (("rgb/0",), "it has 1 channels; expected 3"),
        (("rgb/2",), "it has values that are NaN or infinite"),
    ]


def test_images_that_show_nothing():
    samples = clean()
    samples[0][1] = np.zeros((12, 16, 1), np.uint16)
    samples[1][1] = np.zeros((12, 16, 1), np.uint16)  # these two are no duplicates
    samples[2][0] = np.full((12, 16, 3), 7, np.uint8)
    assert [(kind, where) for kind, _, where, _ in found(samples)] == [
        ("all zero", ("depth/0",)),
        ("all zero", ("depth/1",)),
        ("constant", ("rgb/2",)),
    ]


def test_streams_that_cannot_show_the_same_view():
    samples = clean()
    samples[0][1] = depth(7, 16, 12)
    samples[1][1] = depth(8, 24, 32)
    assert found(samples) == [
        ("misaligned", True, ("rgb/0", "depth/0"), "aspect ratios differ: 16x12, 12x16"),
        ("resolutions", False, ("1",), "resolutions differ between streams; crops stay aligned"),
    ]


def test_duplicates_within_and_across_labels():
    samples = clean()
    samples[2][0] = samples[0][0].copy()
    assert found(samples, [0, 1, 0, 1]) == [
        ("duplicate", False, ("rgb/0", "rgb/2"), "one image, 2 times")
    ]
    assert found(samples, [0, 1, 1, 1]) == [
        ("contradiction", True, ("rgb/0", "rgb/2"), "one image, labels bed, desk")
    ]
    samples[2][0] = samples[0][0].reshape(16, 12, 3)  # the same bytes are not the same image
    assert [f[0] for f in found(samples)] == ["misaligned"]


def test_an_image_in_two_splits():
    other = clean(1000)
    other[3][1] = clean()[0][1]
    assert found(clean(), val=other) == [
        ("leak", True, ("train: depth/0", "val: depth/7"), "one image in train and val")
    ]


def test_a_group_in_two_splits():
    groups = ["attic", "attic", "cellar", "", "hall", "cellar", "", "attic"]
    splits = ["train"] * 4 + ["val"] * 4
    samples = [*clean(), *clean(1000)]
    both = table_of((RGB, DEPTH), samples, [0, 1] * 4, groups, splits)
    report = check(both, smallest_class=1)
    assert [(f.kind, f.where, f.detail) for f in report.found] == [
        ("leak", ("attic",), "one group in train (2 samples) and val (1 samples)"),
        ("leak", ("cellar",), "one group in train (1 samples) and val (1 samples)"),
    ]


def test_classes_that_are_too_small():
    splits = table(train=(clean(), [0, 0, 0, 1]), val=(clean(1000), [1, 1, 1, 1]))
    report = check(splits, smallest_class=2)
    assert [(f.kind, f.harmful, f.where, f.detail) for f in report.found] == [
        ("small class", True, ("desk",), "1 samples in train; expected at least 2"),
        ("empty class", False, ("bed",), "no sample in val"),
    ]
    with pytest.raises(ValueError, match="smallest_class=0; expected at least 1"):
        check(splits, smallest_class=0)


def test_the_harmful_come_first_and_json_holds_everything():
    samples = clean()
    samples[2][0] = samples[0][0]
    samples[3][1] = np.zeros((12, 16, 1), np.uint16)
    seen = []
    report = check(
        table(train=samples), smallest_class=1, progress=lambda *counts: seen.append(counts)
    )
    assert list(report.counts().items()) == [("all zero", 1), ("duplicate", 1)]
    assert report.harmful == 1
    kept = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert kept["harmful"] == 1
    assert [finding["where"] for finding in kept["findings"]] == [["depth/3"], ["rgb/0", "rgb/2"]]
    assert seen[-1] == (8, 8)
