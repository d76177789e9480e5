"""What is read of a source, and how it is put together."""

import pytest
import torch
from hypothesis import given

from manystream.batch import StreamBatch
from manystream.data.loader import StreamDataset
from manystream.data.options import Augmentation
from manystream.data.sampler import SampleKey
from manystream.data.streams import StreamSpec
from manystream.data.transforms import prepare
from manystream.presence import Presence
from tests.builders import CHANNELS, mask_of, presences, random_images
from tests.data.builders import DEPTH, RGB, ArraySource, identity, noise

UNREAD = AssertionError("a blanked image was read")


def dataset(*samples, augmentation=None, seed=0) -> StreamDataset:
    source = ArraySource((RGB, DEPTH), list(samples))
    return StreamDataset(source, identity(RGB, DEPTH, size=4), augmentation, seed)


def collated(images, mask) -> StreamBatch:
    """A batch of every sample of full float images, whose number is its target."""
    streams = tuple(StreamSpec(f"s{m}", x.shape[1]) for m, x in enumerate(images))
    samples = [
        [x[b].permute(1, 2, 0).numpy() if has else None for x, has in zip(images, row, strict=True)]
        for b, row in enumerate(mask.tolist())
    ]
    source = ArraySource(streams, samples)
    source.targets = torch.arange(len(mask))
    preprocessing = identity(*streams, size=tuple(images[0].shape[2:]))
    keys = [SampleKey(b, (True,) * len(streams)) for b in range(len(mask))]
    return prepare(StreamDataset(source, preprocessing).read(keys), preprocessing)


def test_a_bare_number_asks_for_every_stream_the_sample_has():
    data = dataset([noise(4, 4), noise(4, 4, 1)], [noise(4, 5), None])
    data.source.targets = torch.tensor([7, 5])
    assert len(data) == 2
    both, alone = data[0], data[1]
    assert [[tuple(x.shape) for x in images] for images in both.images] == [
        [(4, 4, 3)],
        [(4, 4, 1)],
    ]
    assert [len(images) for images in alone.images] == [1, 0]
    assert (both.target.tolist(), alone.target.tolist()) == ([7], [5])
    assert (both.ids, alone.ids) == (("0",), ("1",))


@pytest.mark.parametrize("kept", [(True, False), (False, True)])
def test_a_blanked_image_is_never_read(kept):
    images = [noise(4, 4), noise(4, 4, 1)]
    images[kept.index(False)] = UNREAD
    raw = dataset(images)[SampleKey(0, kept)]
    assert [len(images) == 1 for images in raw.images] == list(kept)


def test_the_source_that_raises_can_raise():
    with pytest.raises(AssertionError, match="a blanked image was read"):
        dataset([UNREAD, noise(4, 4, 1)])[0]


def test_an_absent_image_is_not_asked_for_even_where_it_is_kept():
    raw = dataset([None, noise(4, 4, 1)])[SampleKey(0, (True, True))]
    assert [len(images) for images in raw.images] == [0, 1]


def test_augmentation_depends_on_seed_epoch_and_number():
    def drawn(seed, epoch, index):
        images = [noise(40, 40), noise(40, 40, 1)]
        data = dataset(images, images, augmentation=Augmentation(), seed=seed)
        return data[SampleKey(index, (True, True), epoch)].draws[0]

    assert drawn(1, 2, 0) == drawn(1, 2, 0)
    assert len({drawn(1, 2, 0), drawn(0, 2, 0), drawn(1, 0, 0), drawn(1, 2, 1)}) == 4


@given(presences())
def test_a_batch_is_what_from_full_gives(words):
    mask = mask_of(words)
    images = random_images(mask, size=(3, 5), dtype=torch.float32)
    batch = collated(images, mask)
    target = torch.arange(len(mask))
    expected = StreamBatch.from_full(images, Presence.from_mask(mask), target)
    assert torch.equal(batch.presence.mask, mask)
    assert torch.equal(batch.target, target)
    for m, (found, wanted) in enumerate(zip(batch.streams, expected.streams, strict=True)):
        assert torch.equal(batch.presence.samples(m), expected.presence.samples(m))
        assert torch.equal(found, wanted)


def test_a_stream_that_no_sample_has_is_empty_with_its_channels():
    mask = mask_of("100 100")
    batch = collated(random_images(mask, size=(3, 5), dtype=torch.float32), mask)
    assert [tuple(x.shape) for x in batch.streams] == [
        (2, CHANNELS[0], 3, 5),
        (0, CHANNELS[1], 3, 5),
        (0, CHANNELS[2], 3, 5),
    ]
    assert batch.streams[1].dtype == torch.float32


def test_a_sample_without_any_stream_is_refused():
    with pytest.raises(ValueError, match="samples without any stream: 0"):
        dataset([None, None])[0]


def test_channels_that_do_not_fit():
    with pytest.raises(ValueError, match=r"'rgb' has shape \(4, 4, 1\); expected \(H, W, 3\)"):
        dataset([noise(4, 4, 1), None])[0]
