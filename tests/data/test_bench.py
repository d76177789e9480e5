import json
from dataclasses import replace
from itertools import repeat

import pytest
import torch

from manystream.data import bench
from manystream.data.bench import PLAIN, FeedingCase, measure_feeding
from manystream.data.options import DataOptions
from manystream.data.plain_loader import PlainDataset
from manystream.data.prepared import PreparedSource
from manystream.data.preprocessing import Preprocessing
from manystream.data.transforms import EvalTransform
from tests.data.prepared.builders import prepared, small_source

CPU = torch.device("cpu")


@pytest.fixture
def case(tmp_path):
    prepared(tmp_path)
    source = PreparedSource(tmp_path, "train")
    preprocessing = Preprocessing((6, 8), source.streams, source.statistics)
    options = DataOptions(batch_size=4, num_workers=0)
    return FeedingCase(small_source(), source, preprocessing, options, 10, 0.0, CPU)


@pytest.mark.parametrize("blanked", [0.0, 1.0])
def test_every_way_feeds_for_ever(case, blanked):
    for feeding in replace(case, blanked=blanked).ways().values():
        batches = feeding()
        masks = [next(batches) for _ in range(6)]  # two batches of each epoch
        assert all(mask.shape == (4, 2) for mask in masks)
        lonely = sum(int((mask.sum(dim=1) == 1).sum()) for mask in masks)
        assert lonely == 24 if blanked else lonely < 24


def test_the_plain_way_gives_the_same_images_without_augmentation(case):
    source = case.files
    plain = PlainDataset(source, case.preprocessing, augment=False)[4]
    ours = EvalTransform(case.preprocessing)([source.read(4, 0), None])
    assert torch.allclose(plain["streams"][0], ours[0])
    assert (plain["streams"][1] == 0).all()
    assert plain["present"].tolist() == [True, False]
    assert plain["target"] == source.targets[4]


def test_only_the_first_samples_are_read(case):
    loader = case.ways()["ours, files, on the cpu"]()
    case.files._samples[10:] = [None] * (len(case.files._samples) - 10)
    for _ in range(8):
        next(loader)


def test_rows_hold_medians_and_ratios_of_the_same_round(monkeypatch):
    clock = iter([0, 2, 0, 1, 0, 4, 0, 1, 0, 4, 0, 2])  # begin and end of each turn, in seconds
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    masks = torch.tensor([[True, True], [True, False]])
    rows = measure_feeding(
        {"a": lambda: repeat(masks), "b": lambda: repeat(masks)},
        batches=2,
        rounds=3,
        ahead=1,
        device=CPU,
    )
    assert rows[0]["samples_per_second"] == 1.0  # 4 samples in 2, 4 and 4 seconds
    assert rows[0]["images_per_second"] == 1.5
    assert (rows[0]["ratio"], rows[0]["ratio_least"], rows[0]["ratio_greatest"]) == (1, 1, 1)
    assert rows[1]["samples_per_second"] == 4.0
    assert (rows[1]["ratio"], rows[1]["ratio_least"], rows[1]["ratio_greatest"]) == (2, 2, 4)


def test_a_measurement_is_strict_json(case):
    ways = {name: way for name, way in case.ways().items() if "device" not in name}
    rows = measure_feeding(ways, batches=1, rounds=2, ahead=0, device=CPU)
    assert [row["name"] for row in rows] == list(ways)
    assert rows[0]["name"] == PLAIN
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert all(row["samples_per_second"] > 0 for row in rows)
