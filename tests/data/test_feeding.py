from dataclasses import replace

import numpy as np
import pytest
import torch

from manystream.data import DataOptions, arrays, folder, loader, loaders, training_data, unlabelled
from manystream.data.opening import open_data
from manystream.data.preprocessing import Preprocessing
from manystream.data.problems import Problems
from manystream.data.scenes import CLASSES as THINGS
from manystream.data.survey import look_at
from manystream.data.survey import statistics as statistics_of
from manystream.data.usable import look_over
from tests.data.builders import DEPTH, OTHER, RGB, noise, write_image

CLASSES = ("bed", "desk", "sofa")


@pytest.fixture
def root(tmp_path):
    """Six training samples, of which one lacks colour and two lack depth; three to validate on."""
    for split, per_class in (("train", 2), ("val", 1)):
        for number, name in enumerate(CLASSES * per_class):
            for stream, channels in (("rgb", 3), ("depth", 1)):
                pixels = noise(20, 24, channels) if channels == 3 else depth(number)
                write_image(tmp_path / split / stream / name / f"{number}.png", pixels)
    for missing in ("rgb/bed/0", "depth/desk/1", "depth/sofa/2"):
        (tmp_path / "train" / f"{missing}.png").unlink()
    return tmp_path


@pytest.fixture
def torn(root):
    """The one image of a sample that has no other, cut in half."""
    path = root / "train/depth/bed/0.png"
    path.write_bytes(path.read_bytes()[:60])
    return path


def depth(number: int) -> np.ndarray:
    return np.full((20, 24), 1000 + 100 * number, np.uint16)


def options_for(root, **changes) -> DataOptions:
    plain = DataOptions(root=root, image_size=16, batch_size=4, num_workers=0)
    return replace(plain, **changes)


def silent(line: str) -> None:
    """Take a line that nobody needs to see."""


def test_a_folder_from_files_to_batches(root):
    lines = []
    data = training_data(options_for(root, augment=False), report=lines.append)
    assert data.classes == CLASSES
    assert data.in_channels == {"rgb": 3, "depth": 1}
    assert lines == [
        f"found images in folders at {root}",
        "train: 6 samples; rgb is missing in 1 (16.7%); depth is missing in 2 (33.3%)",
        "val: 3 samples; every stream present in all",
    ]
    source = folder(root, splits=["train"], streams=(RGB, DEPTH))
    statistics = statistics_of(source, look_at(source))
    assert data.preprocessing == Preprocessing(16, (RGB, DEPTH), statistics)

    (batch,) = data.val
    assert [tuple(x.shape) for x in batch.streams] == [(3, 3, 16, 16), (3, 1, 16, 16)]
    assert batch.target.tolist() == [0, 1, 2]
    of_depth = statistics[1]
    expected = [(1000 + 100 * i - of_depth.mean[0]) / of_depth.std[0] for i in range(3)]
    assert batch.streams[1][:, 0, 0, 0].tolist() == pytest.approx(expected)


def test_training_batches_are_shuffled_compact_and_full(root):
    data = training_data(options_for(root), seed=1, report=silent)
    (batch,) = data.train
    assert len(batch) == 4
    rows = [len(x) for x in batch.streams]
    assert rows == batch.presence.mask.sum(dim=0).tolist()
    again = next(iter(training_data(options_for(root), seed=1, report=silent).train))
    assert all(map(torch.equal, batch.streams, again.streams))
    data.train.batch_sampler.epoch = 1
    assert not torch.equal(next(iter(data.train)).streams[0], batch.streams[0])


def test_a_truncated_image_is_reported_with_its_path_before_any_work(root, torn):
    with pytest.raises(ValueError, match=r"unreadable images: 1\n  .*train/depth/bed/0\.png: "):
        training_data(options_for(root), report=silent)
    with pytest.raises(ValueError, match=r"with on_error: skip they count as absent"):
        training_data(options_for(root), report=silent)


def test_a_truncated_image_can_be_skipped(root, torn):
    lines = []
    data = training_data(options_for(root, on_error="skip"), report=lines.append)
    assert str(torn) in lines[1]
    assert lines[1].startswith("unreadable images: 1\n")
    assert lines[1].endswith("skipped: they count as absent")
    assert lines[2] == "1 samples had nothing else and are left out"
    assert lines[3].startswith("train: 5 samples; depth is missing in 2 (40.0%)")
    assert data.train.dataset.source.ids == ["bed/3", "desk/1", "desk/4", "sofa/2", "sofa/5"]


def test_many_unreadable_images_are_counted_and_some_are_named(root):
    for path in (root / "train/rgb").rglob("*.png"):
        if path.stem != "5":
            path.write_text("torn")
    (root / "train/rgb/bed/x.png").write_text("torn")
    (root / "train/rgb/bed/y.png").write_text("torn")
    with pytest.raises(ValueError, match=r"unreadable images: 6\n(  .*\n){5}  … and 1 more"):
        training_data(options_for(root), report=silent)


def test_streams_are_chosen_by_name_in_order(root):
    (root / "train/masks").mkdir()  # it is not asked for, so it need not hold images
    data = training_data(options_for(root, streams=["depth", "rgb"]), report=silent)
    assert data.in_channels == {"depth": 1, "rgb": 3}
    alone = training_data(options_for(root, streams=["rgb"]), report=silent)
    assert len(alone.train.dataset) == 5


def test_an_empty_root(tmp_path):
    with pytest.raises(ValueError, match=r"split='train' is not in .*there: none"):
        training_data(options_for(tmp_path), report=silent)


def test_a_class_that_training_lacks(root):
    write_image(root / "val/rgb/throne/9.png", noise(20, 24))
    with pytest.raises(ValueError, match="classes that training lacks: 'throne'"):
        training_data(options_for(root), report=silent)


def test_rendered_scenes():
    options = DataOptions(image_size=16, batch_size=5, num_workers=0, num_scenes=24)
    data = training_data(options)
    assert data.classes == THINGS
    assert data.in_channels == {"rgb": 3, "depth": 1}
    assert [len(batch) for batch in data.train] == [5, 5, 5, 5]
    assert [len(batch) for batch in data.val] == [5, 5]
    alone = training_data(replace(options, streams=["depth"]))
    assert alone.in_channels == {"depth": 1}
    assert alone.preprocessing.statistics == data.preprocessing.statistics[1:]
    with pytest.raises(ValueError, match="no stream 'lidar' in the data"):
        training_data(replace(options, streams=["lidar"]))


@pytest.mark.parametrize("trained_on", [{"classes": CLASSES}, {"streams": (DEPTH, OTHER)}])
def test_a_model_of_other_data_is_not_measured_on_rendered_scenes(trained_on):
    with pytest.raises(ValueError, match=r"not trained on rendered scenes; .* with root"):
        open_data(DataOptions(num_scenes=24, image_size=16), ["val"], **trained_on)


def test_unlabelled_images_are_looked_at_once(root, torn):
    new = root / "new"
    for name in "ab":
        write_image(new / "rgb" / f"{name}.png", noise(20, 24))
    (new / "rgb/c.png").write_text("torn")
    table = unlabelled(new, (RGB, DEPTH))
    with pytest.raises(ValueError, match=r"new/rgb/c\.png: (.*\n)*.* on_error: skip they count"):
        look_over(table, (), Problems())
    lines = []
    assert look_over(table, (), Problems("skip", lines.append)).table.ids == ["a", "b"]
    assert str(new / "rgb/c.png") in lines[0]


def test_a_folder_is_fed_in_two_lines(root):
    table = folder(root, report=silent)
    data = loaders(table, image_size=16, batch_size=4, num_workers=0, augment=False, report=silent)
    expected = training_data(options_for(root, augment=False), report=silent)
    assert data.preprocessing == expected.preprocessing
    for found, batch in zip(
        [*data.train, *data.val], [*expected.train, *expected.val], strict=True
    ):
        assert all(map(torch.equal, found.streams, batch.streams))
        assert torch.equal(found.target, batch.target)


def test_a_table_is_fed_as_a_model_was(root):
    data = loaders(folder(root), image_size=16, batch_size=4, num_workers=0, report=silent)
    table = folder(root, splits=["val"], streams=("rgb", "depth"))
    for prepared_as in (data.preprocessing, data.preprocessing.to_dict()):
        (batch,) = loader(table, prepared_as, batch_size=4, num_workers=0)
        (expected,) = data.val
        assert all(map(torch.equal, batch.streams, expected.streams))
    with pytest.raises(ValueError, match=r"prepared as rgb \(3 of color\), .* table has depth"):
        loader(table.with_streams(["depth", "rgb"]), data.preprocessing)


def test_arrays_are_fed_and_never_read_where_absent():
    depth = np.full((8, 6, 6), np.nan, np.float32)
    depth[:4] = np.arange(1, 5)[:, None, None]
    table = arrays(
        {"rgb": np.stack([noise(6, 6) ^ i for i in range(8)]), "depth": depth},
        ["bed", "desk"] * 4,
        present={"depth": [True] * 4 + [False] * 4},
        splits=["train", "val"] * 4,
    )
    data = loaders(table, image_size=6, batch_size=2, num_workers=0, augment=False, report=silent)
    assert data.preprocessing.statistics[1].mean == (2.0,)
    for batch in (*data.train, *data.val):
        assert all(bool(x.isfinite().all()) for x in batch.streams)


@pytest.mark.parametrize("name", ["epochs", "root", "units"])
def test_what_is_no_option_of_feeding_is_refused(root, name):
    with pytest.raises(TypeError, match=rf"loaders\(\) has no option '{name}'"):
        loaders(folder(root), report=silent, **{name: 1})


def test_validation_on_what_is_trained_on_is_refused(root):
    for splits in ({"val_split": "train"}, {"train_split": "trainval"}):
        with pytest.raises(ValueError, match="validation would be on what was trained on"):
            loaders(folder(root), report=silent, **splits)


def test_one_stream_is_chosen_of_a_table(root):
    data = loaders(folder(root), streams=["depth"], image_size=16, report=silent)
    assert data.in_channels == {"depth": 1}
