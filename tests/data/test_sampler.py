import pytest
import torch
from torch.utils.data import DataLoader

from manystream.data.sampler import (
    SampleKey,
    StreamBatchSampler,
    own_sampler,
    select_before_reading,
    shared,
    stratified,
)
from tests.builders import mask_of

EVERYTHING = torch.ones(10, 2, dtype=torch.bool)


def order(sampler: StreamBatchSampler) -> list[int]:
    return [key.index for batch in sampler for key in batch]


def test_batches_in_order():
    sampler = StreamBatchSampler(EVERYTHING, 4)
    assert [[key.index for key in batch] for batch in sampler] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
    assert len(sampler) == 3
    assert next(iter(sampler))[1] == SampleKey(1, (True, True), 0)


def test_a_shuffled_order_depends_on_seed_and_epoch_alone():
    def shuffled(seed, epoch):
        sampler = StreamBatchSampler(EVERYTHING, 4, shuffle=True, seed=seed)
        sampler.epoch = epoch
        return order(sampler)

    assert sorted(shuffled(0, 0)) == list(range(10))
    assert shuffled(3, 5) == shuffled(3, 5)
    assert len({tuple(shuffled(s, e)) for s in range(3) for e in range(3)}) == 9


def test_the_epoch_is_in_every_key():
    sampler = StreamBatchSampler(EVERYTHING, 4, shuffle=True)
    sampler.epoch = 7
    assert {key.epoch for batch in sampler for key in batch} == {7}


@pytest.mark.parametrize(("count", "sizes"), [(10, [4, 4]), (8, [4, 4]), (3, [3])])
def test_a_smaller_last_batch_is_dropped_unless_it_is_the_only_one(count, sizes):
    sampler = StreamBatchSampler(EVERYTHING[:count], 4, drop_last=True)
    assert [len(batch) for batch in sampler] == sizes
    assert len(sampler) == len(sizes)


@pytest.mark.parametrize("world_size", [1, 2])
def test_each_batch_has_its_share_of_every_pattern(world_size):
    present = mask_of(" ".join(["11"] * 70 + ["10"] * 20 + ["01"] * 10))
    sampler = StreamBatchSampler(present, 16, shuffle=True)
    loader = DataLoader(range(100), batch_sampler=sampler)
    with stratified(loader), shared(loader, 0, world_size):
        for batch in list(sampler)[:-1]:
            kept = torch.tensor([key.kept for key in batch])
            for pattern, share in {
                (True, True): 0.7,
                (True, False): 0.2,
                (False, True): 0.1,
            }.items():
                count = int((kept == torch.tensor(pattern)).all(dim=1).sum())
                assert abs(count - 16 * share) < 1 + world_size
    assert not sampler.stratified


@pytest.mark.parametrize("world_size", [2, 3])
def test_patterns_that_take_turns_come_to_every_process(world_size):
    """In an order 10, 11, 10, 11, … every second sample is of one pattern."""
    sampler = StreamBatchSampler(mask_of(" ".join(["10"] * 48 + ["11"] * 47)), 8, shuffle=True)
    loader, seen = DataLoader(range(95), batch_sampler=sampler), []
    for rank in range(world_size):
        with stratified(loader), shared(loader, rank, world_size):
            batches = list(sampler)
        for batch in batches[:-1]:
            assert abs(sum(all(key.kept) for key in batch) - 4) <= 1
        seen += [key.index for batch in batches for key in batch]
    assert len(set(seen)) == len(seen) >= 95 - world_size


def test_a_stratified_order_holds_every_sample_once_and_is_drawn_anew():
    sampler = StreamBatchSampler(mask_of("11 10 11 01 11 11"), 4, shuffle=True)
    sampler.stratified = True
    first = order(sampler)
    sampler.epoch = 1
    assert sorted(first) == sorted(order(sampler)) == list(range(6))
    assert first != order(sampler)


def test_what_is_kept_is_decided_before_anything_is_read():
    present = mask_of("11 10 01 11")
    sampler = StreamBatchSampler(present, 3)
    asked = []

    def select(mask):
        asked.append(mask)
        return mask & torch.tensor([False, True])

    sampler.select = select
    batches = [[(key.index, key.kept) for key in batch] for batch in sampler]
    assert batches == [[(0, (False, True)), (2, (False, True))], [(3, (False, True))]]
    assert torch.equal(torch.cat(asked), present)


def test_a_batch_of_which_nothing_is_kept_is_left_out():
    sampler = StreamBatchSampler(mask_of("10 10 01"), 2)
    sampler.select = lambda mask: mask & torch.tensor([False, True])
    assert [[key.index for key in batch] for batch in sampler] == [[2]]


def test_batch_size_below_one():
    with pytest.raises(ValueError, match="batch_size is 0; expected at least 1"):
        StreamBatchSampler(EVERYTHING, 0)


def test_selecting_for_a_while_leaves_the_sampler_as_it_was():
    sampler = StreamBatchSampler(EVERYTHING, 4)
    loader = DataLoader(range(10), batch_sampler=sampler)
    sampler.select = before = torch.clone

    def interrupted():
        with select_before_reading(loader, torch.zeros_like):
            assert sampler.select is torch.zeros_like
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sampler.select is before


def test_only_our_own_sampler_is_known():
    ours = StreamBatchSampler(EVERYTHING, 4)
    assert own_sampler(DataLoader(range(10), batch_sampler=ours)) is ours
    assert own_sampler(DataLoader(range(10), batch_size=2)) is None
    assert own_sampler([1, 2]) is None
    with select_before_reading([1, 2], torch.zeros_like):
        pass


def test_an_epoch_is_entered_in_its_middle_once():
    sampler = StreamBatchSampler(EVERYTHING, 4, shuffle=True)
    whole = order(sampler)
    sampler.start = 1
    assert order(sampler) == whole[4:]
    assert order(sampler) == whole


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(("count", "drop_last"), [(10, False), (10, True), (13, True), (3, True)])
def test_processes_share_every_step_of_one_with_larger_batches(world_size, count, drop_last):
    def batches(size, rank, of):
        sampler = StreamBatchSampler(
            torch.ones(count, 2, dtype=torch.bool), size, shuffle=True, drop_last=drop_last
        )
        loader = DataLoader(range(count), batch_sampler=sampler)
        with shared(loader, rank, of, even=False):
            found = [{key.index for key in batch} for batch in sampler]
            assert len(found) == len(sampler)
        assert (sampler.rank, sampler.world_size) == (0, 1)
        return found

    shares = [batches(2, rank, world_size) for rank in range(world_size)]
    joined = batches(2 * world_size, 0, 1)
    assert [set.union(*parts) for parts in zip(*shares, strict=True)] == joined
    assert [sum(map(len, parts)) for parts in zip(*shares, strict=True)] == list(map(len, joined))


@pytest.mark.parametrize(("count", "steps"), [(12, 2), (13, 2), (14, 2), (15, 3)])
def test_in_training_every_process_has_a_batch_in_every_step(count, steps):
    sampler = StreamBatchSampler(torch.ones(count, 2, dtype=torch.bool), 2)
    loader = DataLoader(range(count), batch_sampler=sampler)
    for rank in range(3):
        with shared(loader, rank, 3):
            assert len(list(sampler)) == len(sampler) == steps


def test_fewer_samples_than_processes():
    loader = DataLoader(range(2), batch_sampler=StreamBatchSampler(EVERYTHING[:2], 4))
    with pytest.raises(ValueError, match="2 samples for 3 processes"), shared(loader, 0, 3):
        pass
    with shared([1, 2], 1, 3):  # any other loader is left as it is
        pass
