"""A prepared set stands at --data.root in place of the files it was made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from manystream.data import DataOptions, prepare_split, training_data
from manystream.data.loader import StreamLoader
from manystream.data.opening import open_data
from manystream.data.usable import usable_samples
from tests.data.builders import noise, write_image

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path):
    """Files of two streams, some missing; one size in each stream."""
    for split, number in (("train", 8), ("val", 4)):
        for i in range(number):
            name = f"{('bed', 'desk')[i % 2]}/{i}.png"
            if i != 3:
                write_image(tmp_path / "files" / split / "rgb" / name, noise(18, 24) ^ i)
            if i != 1:
                depth = noise(9, 12, 1)[..., 0].astype(np.uint16) * 30 + i
                write_image(tmp_path / "files" / split / "depth" / name, depth)
    return tmp_path


def options(root, **changes) -> DataOptions:
    plain = DataOptions(root=root, image_size=12, batch_size=4, num_workers=0)
    return replace(plain, **changes)


def silent(line: str) -> None:
    """Take a line that nobody needs to see."""


def write(root, size=None, **changes) -> DataOptions:
    """Prepare both splits, and name the result."""
    data = options(root / "files", **changes)
    splits = ("train", "val")
    usable = usable_samples(open_data(data, report=silent), splits, data, report=silent)
    for split in splits:
        known = usable.statistics[split]
        prepare_split(usable.table.part(split), known, root / "set", split, size=size)
    return replace(data, root=root / "set", format=None)


def batches(data: DataOptions, **changes):
    loaded = training_data(replace(data, **changes), seed=4, report=silent)
    return loaded, [*loaded.train, *loaded.val]


@pytest.mark.parametrize("augment", [True, False])
def test_images_kept_as_they_are_give_the_same_bits(root, augment):
    set_options = write(root)
    from_files, expected = batches(options(root / "files"), augment=augment)
    from_set, found = batches(set_options, augment=augment)
    assert from_set.preprocessing == from_files.preprocessing
    assert from_set.classes == from_files.classes
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a.presence.mask, b.presence.mask)
        assert torch.equal(a.target, b.target)
        assert all(map(torch.equal, a.streams, b.streams))


def test_images_of_the_size_that_is_trained_on_give_the_same_bits_unaugmented(root):
    set_options = write(root, size=(12, 12))
    _, expected = batches(options(root / "files"), augment=False)
    _, found = batches(set_options, augment=False)
    for a, b in zip(expected, found, strict=True):
        assert all(map(torch.equal, a.streams, b.streams))


def test_it_is_recognised_and_its_absences_are_reported(root):
    lines = []
    training_data(write(root), report=lines.append)
    assert lines == [
        f"found a prepared set at {root / 'set'}",
        "train: 8 samples; rgb is missing in 1 (12.5%); depth is missing in 1 (12.5%)",
        "val: 4 samples; rgb is missing in 1 (25.0%); depth is missing in 1 (25.0%)",
    ]


def test_streams_are_chosen(root):
    loaded, _ = batches(write(root), streams=["depth"])
    assert loaded.in_channels == {"depth": 1}


def test_what_is_unfinished_or_damaged_is_not_trained_on(root):
    data = write(root)
    (root / "set/val").rename(root / "set/val.partial")
    with pytest.raises(ValueError, match=r"split 'val' of the prepared set .* was interrupted"):
        training_data(data, report=silent)
    (root / "set/val.partial").rename(root / "set/val")
    stream = root / "set/train/0-rgb.npy"
    stream.write_bytes(stream.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="is not what was written"):
        training_data(replace(data, verify=True), report=silent)
    with pytest.raises(ValueError, match="is not what was written"):
        batches(data)


def test_what_is_known_of_it_cannot_be_told_otherwise(root):
    with pytest.raises(ValueError, match=r"units is for folders and manifests"):
        training_data(replace(write(root), units={"depth": "mm"}), report=silent)


def test_the_device_prepares_the_same_batches(root):
    loaded, expected = batches(write(root))
    for loader, of_host in ((loaded.train, expected[:-1]), (loaded.val, expected[-1:])):
        on_device = StreamLoader(loader.dataset, loader.batch_sampler, device=CPU)
        assert (loader.device, on_device.device) == (None, CPU)
        for a, b in zip(of_host, on_device, strict=True):
            assert torch.equal(a.target, b.target)
            assert all(map(torch.equal, a.streams, b.streams))


@pytest.mark.parametrize(("workers", "threads"), [(1, 1), (12, 4)])
def test_a_device_is_fed_by_threads_from_a_set_and_by_processes_from_files(root, workers, threads):
    loaded, expected = batches(write(root))

    def fed(dataset, num_workers):
        sampler = loaded.train.batch_sampler
        return StreamLoader(dataset, sampler, num_workers=num_workers, device=CPU)

    by_threads = fed(loaded.train.dataset, workers)
    assert (by_threads.num_threads, by_threads.num_workers) == (threads, 0)
    for a, b in zip(expected, by_threads, strict=False):
        assert all(map(torch.equal, a.streams, b.streams))
    files, _ = batches(options(root / "files"))
    by_processes = fed(files.train.dataset, 1)
    assert (by_processes.num_threads, by_processes.num_workers) == (0, 1)
    for a, b in zip(expected, by_processes, strict=False):
        assert all(map(torch.equal, a.streams, b.streams))
