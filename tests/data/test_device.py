import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manystream.data.augmentation import Augmentation
from manystream.data.dataset import Collate, SampleKey, StreamDataset
from manystream.data.device import DeviceLoader, prepare
from manystream.data.image import UnreadableImageError
from manystream.data.prepared import prepared
from manystream.data.preprocessing import Preprocessing
from manystream.data.raw import RawDataset
from manystream.data.sampler import StreamBatchSampler, shared
from manystream.data.statistics import StreamStatistics
from manystream.data.streams import StreamSpec
from manystream.data.table import ArrayTable
from manystream.data.transforms import EvalTransform, TrainTransform
from manystream.dropout import ModalityDropout
from tests.data.builders import DEPTH, OTHER, RGB, ArraySource, noise, reading_threads
from tests.data.prepared.builders import small_table, write_set

SECOND = StreamSpec("second", 1, "depth")
STREAMS = (RGB, DEPTH, OTHER, SECOND)
STATISTICS = (
    StreamStatistics((120.0, 110.0, 100.0), (60.0, 50.0, 40.0)),
    StreamStatistics((3000.0,), (1500.0,)),
    StreamStatistics((0.4, 0.6), (0.3, 0.2)),
    StreamStatistics((2.0,), (1.0,)),
)
ALL = Augmentation(scale=(0.3, 1.0), depth_scale=0.2, depth_noise=0.1, depth_holes=3)
CPU = torch.device("cpu")


def source_of(sizes, words) -> ArraySource:
    """Samples of four streams, as large as ``sizes`` has it and present as the words of bits."""
    rng = np.random.default_rng(1)

    def images(height, width):
        return [
            rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
            rng.integers(0, 9000, (2 * height, 2 * width, 1)).astype(np.uint16),
            rng.random((height, width, 2), np.float32),
            rng.choice(np.array([0, np.nan, 1, 3], np.float32), (height, width, 1)),
        ]

    rows = [
        [image if bit == "1" else None for image, bit in zip(images(*size), word, strict=True)]
        for size, word in zip(sizes, words, strict=True)
    ]
    return ArraySource(STREAMS, rows)


def both(source, transform, keys, seed=5):
    """What the host makes of a batch, and what the device does."""
    channels = [spec.channels for spec in source.streams]
    data = StreamDataset(source, transform, seed)
    raw = RawDataset(source, transform, seed).__getitems__(keys)
    return Collate(channels)([data[key] for key in keys]), prepare(raw, transform.preprocessing)


def assert_alike(host, device, streams=STREAMS, statistics=STATISTICS):
    assert torch.equal(host.presence.mask, device.presence.mask)
    assert torch.equal(host.target, device.target)
    assert host.ids == device.ids
    for spec, stats, x, y in zip(streams, statistics, host.streams, device.streams, strict=True):
        assert x.shape == y.shape
        assert y.dtype == torch.float32
        # 8 bits are resized as such on the host: a level, and the contrast that jitter gives it.
        level = 2.5 / min(stats.std) if spec.kind == "color" else 1e-4
        assert torch.allclose(x, y, rtol=1e-4, atol=level)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.tuples(st.integers(2, 40), st.integers(2, 40)), min_size=3, max_size=3),
    size=st.tuples(st.integers(2, 24), st.integers(2, 24)),
)
def test_host_and_device_draw_and_do_the_same(seed, sizes, size):
    source = source_of(sizes, ["1111", "0110", "1001"])
    transform = TrainTransform(Preprocessing(size, STREAMS, STATISTICS), ALL)
    keys = [SampleKey(index, (True,) * 4, epoch=2) for index in (2, 0, 1)]
    assert_alike(*both(source, transform, keys, seed))


def test_depth_is_the_same_to_the_pixel():
    source = source_of([(37, 23)] * 4, ["1111"] * 4)
    transform = TrainTransform(Preprocessing((16, 12), STREAMS, STATISTICS))
    keys = [SampleKey(index, (True,) * 4) for index in range(4)]
    host, device = both(source, transform, keys)
    for stream in (1, 3):
        assert torch.equal(host.streams[stream], device.streams[stream])


@pytest.mark.parametrize("size", [(9, 7), (6, 8)])
def test_without_augmentation_the_whole_image_is_taken(size):
    source = source_of([(6, 8)] * 2, ["1100", "1110"])
    transform = EvalTransform(Preprocessing(size, STREAMS, STATISTICS))
    keys = [SampleKey(index, (True,) * 4) for index in range(2)]
    host, device = both(source, transform, keys)
    assert_alike(host, device)
    if size == (6, 8):  # nothing was resized
        assert torch.equal(host.streams[0], device.streams[0])


def test_a_blanked_image_is_neither_read_nor_there():
    source = source_of([(6, 8)] * 2, ["1100", "1100"])
    source._samples[0][1] = AssertionError("a blanked image was read")
    transform = TrainTransform(Preprocessing(4, STREAMS, STATISTICS))
    keys = [SampleKey(0, (True, False, True, True)), SampleKey(1, (True,) * 4)]
    raw = RawDataset(source, transform).__getitems__(keys)
    assert [len(images) for images in raw.images] == [2, 1, 0, 0]
    batch = prepare(raw, transform.preprocessing)
    assert [tuple(x.shape) for x in batch.streams][1:] == [(1, 1, 4, 4), (0, 2, 4, 4), (0, 1, 4, 4)]
    with pytest.raises(AssertionError, match="blanked image was read"):
        RawDataset(source, transform).__getitems__([SampleKey(0, (True,) * 4)])


def test_images_are_moved_as_they_are_stored():
    source = source_of([(6, 8)] * 2, ["1111"] * 2)
    transform = TrainTransform(Preprocessing(4, STREAMS, STATISTICS))
    raw = RawDataset(source, transform)[SampleKey(0, (True,) * 4)]
    assert [x.dtype for x in raw.images] == [
        torch.uint8,
        torch.uint16,
        torch.float32,
        torch.float32,
    ]


def test_channels_that_do_not_fit():
    source = ArraySource((RGB,), [[noise(4, 4, 1)]])
    transform = EvalTransform(Preprocessing(4, (RGB,), STATISTICS[:1]))
    with pytest.raises(ValueError, match="stream 'rgb' have 1 channels; expected 3"):
        RawDataset(source, transform)[SampleKey(0, (True,))]


@pytest.fixture
def loader(tmp_path):
    write_set(tmp_path)
    source = prepared(tmp_path)
    preprocessing = Preprocessing((5, 6), source.streams, source.known_statistics("train"))

    def make(**reading):
        sampler = StreamBatchSampler(source.present, 8, shuffle=True, seed=3)
        sampler.select = ModalityDropout(2, 0.5, seed=3).draw
        dataset = RawDataset(source, TrainTransform(preprocessing), 3)
        return DeviceLoader(dataset, CPU, batch_sampler=sampler, **reading)

    return make


def test_prepared_rows_are_read_a_stream_at_a_time(loader, monkeypatch):
    calls = []
    read_many = ArrayTable.read_many

    def counted(self, indices, stream, **how):
        calls.append(stream)
        return read_many(self, indices, stream, **how)

    monkeypatch.setattr(ArrayTable, "read_many", counted)
    batches = list(loader())
    assert calls == [0, 1] * len(batches)
    assert sum(map(len, batches)) == len(small_table().ids)


def test_a_loader_gives_what_the_host_gives(loader):
    device_loader = loader()
    device_loader.batch_sampler.select = None
    data = device_loader.dataset
    host = StreamDataset(data.source, data.transform, data.seed)
    keys = list(device_loader.batch_sampler)
    for keys_of_batch, batch in zip(keys, device_loader, strict=True):
        expected = Collate((3, 1))([host[key] for key in keys_of_batch])
        assert_alike(
            expected,
            batch,
            data.source.streams,
            data.source.known_statistics("train"),
        )


def begin(loader, epoch, batch=0):
    """Go where a training loop would."""
    sampler = loader.batch_sampler
    sampler.epoch, sampler.start = epoch, batch
    sampler.select.__self__.begin(epoch, batch)
    return loader


def assert_same(expected, found):
    for a, b in zip(expected, found, strict=True):
        assert a.ids == b.ids
        assert torch.equal(a.presence.mask, b.presence.mask)
        assert torch.equal(a.target, b.target)
        assert all(map(torch.equal, a.streams, b.streams))


@pytest.mark.parametrize("reading", [{"num_workers": 1}, {"num_threads": 1}, {"num_threads": 3}])
def test_who_reads_ahead_changes_nothing(loader, reading):
    alone, helped = loader(), loader(**reading)
    for epoch in range(2):
        assert_same(begin(alone, epoch), begin(helped, epoch))


def test_epochs_differ(loader):
    batches = loader()
    first, second = next(iter(begin(batches, 0))), next(iter(begin(batches, 1)))
    assert first.ids != second.ids
    assert not torch.equal(first.streams[0][:1], second.streams[0][:1])


def test_a_run_goes_on_within_an_epoch_whatever_was_read_ahead(loader):
    threaded = loader(num_threads=2)
    expected = list(begin(threaded, 1))
    stopped = iter(begin(threaded, 1))
    next(stopped)
    del stopped
    state = torch.get_rng_state()
    assert_same(expected[1:], begin(threaded, 1, batch=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_processes_share_what_threads_read(loader):
    whole = loader()
    whole.batch_sampler.select, whole.batch_sampler.batch_size = None, 16
    expected = {name for batch in whole for name in batch.ids}
    found = []
    for rank in range(2):
        part = loader(num_threads=2)
        part.batch_sampler.select = None
        with shared(part, rank, 2):
            found += [name for batch in part for name in batch.ids]
    assert len(found) == len(expected)
    assert set(found) == expected


def test_damage_that_a_thread_finds_is_told(loader, tmp_path):
    stream = tmp_path / "train/0-rgb.npy"
    stream.write_bytes(stream.read_bytes()[:-1] + b"!")
    with pytest.raises(UnreadableImageError, match=r"0-rgb\.npy: row \d+ is not what was written"):
        list(loader(num_threads=2))
    assert not reading_threads()


def test_dropout_is_drawn_before_reading(loader):
    filled = loader(num_threads=2)
    filled.batch_sampler.select = ModalityDropout(2, 1.0).draw
    assert all(batch.presence.mask.sum(dim=1).max() == 1 for batch in filled)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_does_what_the_host_does():
    source = source_of([(37, 23), (20, 30), (9, 9)], ["1111", "0110", "1001"])
    transform = TrainTransform(Preprocessing((16, 12), STREAMS, STATISTICS), ALL)
    raw = RawDataset(source, transform, 5).__getitems__(
        [SampleKey(index, (True,) * 4) for index in range(3)]
    )
    host = prepare(raw, transform.preprocessing)
    device = prepare(raw.pin_memory().to(torch.device("cuda")), transform.preprocessing)
    for x, y in zip(host.streams, device.streams, strict=True):
        torch.testing.assert_close(x, y.cpu(), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_fed_what_the_host_is(tmp_path):
    write_set(tmp_path, small_table(size=(96, 128)))
    source = prepared(tmp_path)
    transform = TrainTransform(
        Preprocessing((5, 6), source.streams, source.known_statistics("train"))
    )
    raw = RawDataset(source, transform, 3, pinned=True)
    sampler = StreamBatchSampler(source.present, 8, shuffle=True, seed=3)
    assert all(images.is_pinned() for images in raw.__getitems__(next(iter(sampler))).images)
    fed = DeviceLoader(raw, torch.device("cuda"), num_threads=2, batch_sampler=sampler)
    host = DeviceLoader(RawDataset(source, transform, 3), CPU, batch_sampler=sampler)
    busy = torch.rand(4096, 4096, device="cuda")
    found = []
    for batch in fed:  # copies run ahead of what the GPU is kept busy with
        busy = busy @ busy / busy.norm()
        found.append((batch, [x.clone() for x in batch.streams]))
    for expected, (batch, streams) in zip(host, found, strict=True):
        assert torch.equal(expected.target, batch.target.cpu())
        for x, y in zip(expected.streams, streams, strict=True):
            torch.testing.assert_close(x, y.cpu(), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nobody_waits_for_the_gpu():
    source = source_of([(37, 23), (20, 30)], ["1111", "1001"])
    transform = TrainTransform(Preprocessing((16, 12), STREAMS, STATISTICS), ALL)
    keys = [SampleKey(index, (True,) * 4) for index in range(2)]
    raw = RawDataset(source, transform, 5).__getitems__(keys).pin_memory()
    cuda = torch.device("cuda")
    prepare(raw.to(cuda), transform.preprocessing)  # the statistics are sent once
    torch.cuda.set_sync_debug_mode("error")
    try:
        prepare(raw.to(cuda), transform.preprocessing)
    finally:
        torch.cuda.set_sync_debug_mode("default")
