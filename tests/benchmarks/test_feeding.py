"""Ways to feed, side by side."""

import json
from argparse import Namespace
from itertools import repeat

import pytest
import torch
from benchmarks.feeding import PLAIN, Feeding, measure_ways, repeated

from benchmarks import feeding
from harness.plain_loader import PlainDataset
from manystream.data.loader import StreamDataset
from manystream.data.options import DataOptions
from manystream.data.prepared import prepared
from manystream.data.preprocessing import Preprocessing
from manystream.data.transforms import prepare
from tests.data.prepared.builders import small_table, write_set

CPU = torch.device("cpu")


@pytest.fixture
def fed(tmp_path) -> Feeding:
    write_set(tmp_path)
    arrays, files = prepared(tmp_path), small_table()
    preprocessing = Preprocessing((6, 8), arrays.streams, arrays.known_statistics("train"))
    return Feeding(
        StreamDataset(files, preprocessing),
        StreamDataset(arrays, preprocessing),
        PlainDataset(files, preprocessing, augment=False),
        DataOptions(batch_size=4, num_workers=0),
        CPU,
    )


@pytest.mark.parametrize("blanked", [0.0, 1.0])
def test_every_way_feeds_for_ever(fed, blanked):
    ways = fed.ways(blanked)
    assert list(ways) == [PLAIN, "ours, files, on the cpu", "ours, prepared, on the cpu"]
    for way in ways.values():
        masks = [next(way) for _ in range(25)]  # an epoch has ten
        assert all(mask.shape == (4, 2) for mask in masks)
        lonely = sum(int((mask.sum(dim=1) == 1).sum()) for mask in masks)
        assert lonely == 100 if blanked else lonely < 100


def test_the_plain_way_gives_the_same_images_without_augmentation(fed):
    plain = fed.plain[4]
    ours = prepare(fed.files[4], fed.files.preprocessing).streams
    assert torch.allclose(plain["streams"][0], ours[0][0])
    assert len(ours[1]) == 0
    assert (plain["streams"][1] == 0).all()
    assert plain["present"].tolist() == [True, False]
    assert plain["target"] == fed.files.source.targets[4]


def test_a_source_many_times_over_gives_the_same_images():
    source = small_table()
    many = repeated(source, 3)
    length = len(source.ids)
    assert len(many.ids) == len(many.targets) == len(many.present) == 3 * length
    assert (many.read(2 * length + 1, 0) == source.read(1, 0)).all()


def test_rows_hold_medians_and_ratios_of_the_same_round(monkeypatch):
    clock = iter([0, 2, 0, 1, 0, 4, 0, 1, 0, 4, 0, 2])  # begin and end of each turn, in seconds
    monkeypatch.setattr(feeding, "perf_counter", lambda: next(clock))
    masks = torch.tensor([[True, True], [True, False]])
    ways = {"a": repeat(masks), "b": repeat(masks)}
    rows = measure_ways(ways, batches=2, rounds=3, prefetched=1, device=CPU)
    assert rows[0]["samples_per_second"] == 1.0  # 4 samples in 2, 4 and 4 seconds
    assert rows[0]["images_per_second"] == 1.5
    assert (rows[0]["ratio"], rows[0]["ratio_least"], rows[0]["ratio_greatest"]) == (1, 1, 1)
    assert rows[1]["samples_per_second"] == 4.0
    assert (rows[1]["ratio"], rows[1]["ratio_least"], rows[1]["ratio_greatest"]) == (2, 2, 4)


def test_files_are_written_prepared_and_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(feeding, "HEIGHT", 48)
    monkeypatch.setattr(feeding, "WIDTH", 64)
    monkeypatch.setattr(feeding, "STORED", 32)
    out = tmp_path / "feeding.json"
    words = "--samples 12 --rounds 2 --batches 1 --batch-size 4 --workers 0 --image-size 16"
    feeding.main([*words.split(), "--blanked", "0.2", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows] == [
        PLAIN,
        "ours, files, on the cpu",
        "ours, prepared, on the cpu",
    ]
    assert all(row["samples_per_second"] > 0 and row["blanked"] == 0.2 for row in rows)
    assert "ours, prepared" in capsys.readouterr().out


def test_data_of_ones_own_need_no_prepared_set(tmp_path):
    feeding.write_files(tmp_path, 12)
    options = Namespace(
        root=tmp_path,
        prepared=None,
        streams=["depth"],
        image_size=16,
        batch_size=4,
        workers=0,
    )
    ways = feeding.opened(options, tmp_path).ways(0.0)
    assert list(ways) == [PLAIN, "ours, files, on the cpu"]
    assert all(next(way).shape == (4, 1) for way in ways.values())
