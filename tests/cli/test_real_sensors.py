"""Depth that is truly missing: trained, evaluated by subset, reported, and the same as blanked."""

import numpy as np
import pytest
import torch

import manystream as ms
from manystream.cli import main
from manystream.cli.batches import evaluation_loader
from manystream.data import DataOptions, Preprocessing, loader, training_data
from manystream.data.loader import StreamDataset
from manystream.data.opening import open_data
from manystream.data.transforms import prepare
from manystream.data.usable import usable_samples
from tests.data import official

CLASSES = ("bedroom", "office")


def folder_of(number: int) -> str:
    return f"xtion/sun3ddata/place_{number // 2}/visit/0000{number:03d}-000000000000"


def is_missing(number: int) -> bool:
    return number % 10 in (1, 4, 8)


@pytest.fixture
def root(tmp_path):
    """SUN RGB-D of 40 scenes in 20 places; 30% of training and of test have no depth file."""
    folders = [folder_of(number) for number in range(40)]
    for number, folder in enumerate(folders):
        official.write_sun_scene(tmp_path / "SUNRGBD", folder, CLASSES[number // 2 % 2], number % 9)
        if is_missing(number):
            depth_file(tmp_path, number).unlink()
    official.write_sun_split(tmp_path / "SUNRGBD", folders[:30], folders[30:])
    return tmp_path


def depth_file(root, number: int):
    return root / "SUNRGBD" / folder_of(number) / "depth_bfx/0000103.png"


def options_for(root, **changes) -> DataOptions:
    return DataOptions(root=root, image_size=16, batch_size=6, num_workers=0, **changes)


def test_training_evaluates_by_subset_and_reports_the_share(root, tmp_path, capsys):
    out = tmp_path / "run"
    words = [f"--data.root={root}", "--data.image-size=16", "--data.batch-size=8"]
    words += ["--data.num-workers=0", "--data.train-split=trainval"]
    quick = ["--model.width=0.0625", "--fit.epochs=1", "--fit.accelerator=cpu"]
    quick += ["--fit.progress=false", f"--out={out}", "--data.val-split=test"]
    assert main(["train", *words, *quick]) == 0
    printed = capsys.readouterr().out
    assert f"found SUN RGB-D at {root}" in printed
    assert "trainval: 30 samples; depth is missing in 9 (30.0%)" in printed
    assert "test: 10 samples; depth is missing in 3 (30.0%)" in printed
    for subset in ("rgb + depth", "rgb", "depth"):
        assert f"│ {subset} " in printed
    assert (out / "subsets.json").is_file()
    assert ms.load_model(out / "model.safetensors").held_out is None


def opened(root, split):
    """A split's usable samples, and their statistics."""
    options = options_for(root)
    table = open_data(options, [split], report=lambda line: None)
    found = usable_samples(table, [split], options, report=lambda line: None)
    return found.table, found.statistics[split]


def trained(source, preprocessing) -> ms.StreamModel:
    torch.manual_seed(0)
    channels = {spec.name: spec.channels for spec in source.streams}
    model = ms.create_model("li_net3", streams=channels, num_classes=19, width=0.0625)
    feeding = loader(source, preprocessing, options_for(None), train=True, augment=False)
    model.fit(feeding, epochs=2, accelerator="cpu", progress=False)
    return model


def test_missing_and_blanked_are_the_same_bits(root):
    """Files that are there, but taken away before reading, cannot leave a trace."""
    missing, statistics = opened(root, "trainval")
    gone = [depth_file(root, number) for number in range(30) if is_missing(number)]
    for path in gone:  # They hold something, so that reading any of them would show.
        official.write_image(path, np.full(official.SHAPE, 40000, np.uint16))
    everything, with_files = opened(root, "trainval")
    assert everything.present.all()
    assert with_files != statistics
    blanked = everything.without(
        {(i, 1) for i in range(len(everything)) if everything.path(i, 1) in gone}
    )
    torch.testing.assert_close(blanked.present, missing.present, rtol=0, atol=0)

    preprocessing = Preprocessing(16, missing.streams, statistics)
    first, second = trained(missing, preprocessing), trained(blanked, preprocessing)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name

    third = trained(everything, preprocessing)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), third.state_dict().values(), strict=True)
    )


def test_evaluation_of_missing_and_of_blanked_are_the_same_bits(root):
    source, statistics = opened(root, "test")
    preprocessing = Preprocessing(16, source.streams, statistics)
    model = ms.create_model("li_net3", streams={"rgb": 3, "depth": 1}, num_classes=19, width=0.0625)
    model.eval()
    (batch,) = loader(source, preprocessing, batch_size=99, num_workers=0)
    gone = torch.tensor([is_missing(number) for number in range(30, 40)])
    for number in range(30, 40):
        if is_missing(number):
            official.write_image(depth_file(root, number), np.full(official.SHAPE, 9, np.uint16))
    whole, _ = opened(root, "test")
    dataset = StreamDataset(whole, preprocessing)
    samples = [prepare(dataset[i], preprocessing) for i in range(10)]
    images = {
        name: torch.cat([s.streams[m] for s in samples]) for m, name in enumerate(["rgb", "depth"])
    }
    with torch.no_grad():
        expected = model(batch)
        blanked = model(images, blanked_mask={1: gone})
    assert torch.equal(blanked, expected)


def test_validation_of_training_data_is_of_other_places(root):
    lines = []
    data = training_data(options_for(root), report=lines.append)
    places = [set(loader.dataset.source.groups) for loader in (data.train, data.val)]
    assert not places[0] & places[1]
    assert any("are held out by scene: 0.0%" in line for line in lines)
    assert data.in_channels == {"rgb": 3, "depth": 1}
    assert len(data.classes) == 19


def test_a_model_is_evaluated_on_what_it_was_not_trained_on(root, capsys):
    data = training_data(options_for(root, val_share=0.4, split_seed=3), report=lambda line: None)
    task = ms.tasks.Classification(classes=data.classes)
    model = ms.create_model(streams=data.in_channels, task=task, width=0.0625)
    model.preprocessing, model.held_out = data.preprocessing.to_dict(), data.held_out
    measured = evaluation_loader(model, root, options_for(root, split_seed=3))
    assert measured.dataset.source.ids == data.val.dataset.source.ids
    assert capsys.readouterr().out.splitlines()[0] == "val_share is 0.4, as in training"
    default = evaluation_loader(model, root, options_for(root, format="sun_rgbd"))
    assert default.dataset.source.ids == data.val.dataset.source.ids


def test_splits_that_are_there_are_not_said_to_be_held_out(root, tmp_path):
    words = [f"--data.root={root}", f"--out={tmp_path / 'set'}", "--size=16"]
    assert main(["prepare", *words, "--data.num-workers=0"]) == 0
    assert training_data(options_for(tmp_path / "set"), report=lambda line: None).held_out is None
