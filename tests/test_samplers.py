import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from imbmargin.data.batches import ArrayBatches, ArrayDataset
from imbmargin.samplers import ClassSampledLoader, ClassSampler, batches_at_rates

TARGETS = np.repeat([0, 1, 2], [900, 90, 10])


def sampler(seed=0, **kwargs):
    return ClassSampler(TARGETS, generator=torch.Generator().manual_seed(seed), **kwargs)


def test_without_rates_an_epoch_is_a_new_permutation():
    drawn = sampler()
    first, second = drawn.draw(), drawn.draw()
    assert sorted(first.tolist()) == list(range(1000))
    assert sorted(second.tolist()) == list(range(1000))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("rates", [[1, 1, 1], [0.2, 0.3, 0.5], [0, 0, 1], [5, 0, 5]])
def test_classes_are_drawn_at_their_rates_and_rows_uniformly(rates):
    drawn = sampler()
    drawn.set_rates(rates)
    rows = torch.cat([drawn.draw() for _ in range(30)]).numpy()
    expected = np.asarray(rates) / np.sum(rates)
    seen = np.bincount(TARGETS[rows], minlength=3) / len(rows)
    np.testing.assert_allclose(seen, expected, atol=0.012)
    tail = np.bincount(rows, minlength=1000)[990:]
    if expected[2]:
        np.testing.assert_allclose(tail / tail.sum(), 0.1, atol=0.02)


def test_every_row_of_a_class_can_be_drawn_and_no_other():
    drawn = ClassSampler([1, 0, 1, 0, 1])
    drawn.set_rates([0, 1])
    assert set(torch.cat([drawn.draw() for _ in range(40)]).tolist()) == {0, 2, 4}


def test_rates_switch_in_place_and_back():
    drawn = sampler()
    drawn.set_rates([0, 0, 1])
    assert set(drawn) <= set(range(990, 1000))
    drawn.set_rates(None)
    assert sorted(drawn) == list(range(1000))


def test_the_same_generator_gives_the_same_rows():
    one, other = sampler(3), sampler(3)
    for drawn in (one, other):
        drawn.set_rates([1, 1, 1])
    assert torch.equal(one.draw(), other.draw())


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ([1, 1], "rates must have one entry for each of the 3 classes"),
        ([1, -1, 1], "rates must be finite, not negative and not all zero"),
        ([1, np.nan, 1], "rates must be finite"),
        ([0, 0, 0], "not all zero"),
    ],
)
def test_wrong_rates(rates, message):
    with pytest.raises(ValueError, match=message):
        sampler().set_rates(rates)


def test_a_class_without_rows_cannot_be_drawn():
    drawn = ClassSampler([0, 0, 2], num_classes=3)
    with pytest.raises(ValueError, match=r"without a training row.*encoded classes \[1\]"):
        drawn.set_rates([1, 1, 1])
    drawn.set_rates([1, 0, 1])
    assert set(drawn) <= {0, 1, 2}


def test_the_loader_draws_from_its_own_part_only():
    data = TensorDataset(torch.arange(1000.0), torch.from_numpy(TARGETS))
    part = Subset(data, [0, 1, 2, 995])
    loader = ClassSampledLoader(part, batch_size=4)
    part.class_sampler.set_rates([0, 0, 1])
    assert {float(x) for batch, _ in loader for x in batch} == {995.0}


def test_rates_of_batches_change_within_an_epoch():
    drawn = sampler()
    drawn.set_rates([1, 0, 0], by_batch=True)
    batches = ArrayBatches(ArrayDataset(np.arange(len(drawn)), TARGETS), 10, sampler=drawn)
    loader = DataLoader(range(len(drawn)), 10, sampler=drawn)
    for iterator in (batches, ((x, TARGETS[x]) for x in loader)):
        drawn.set_rates([1, 0, 0], by_batch=True)
        labels = []
        for i, (_, target) in enumerate(iterator):
            labels.append(set(target.tolist()))
            if i == 1:
                drawn.set_rates([0, 0, 1], by_batch=True)
        assert labels[:2] == [{0}, {0}]
        assert all(found == {2} for found in labels[2:])
    drawn.set_rates([1, 0, 0])
    assert not drawn.by_batch


def test_batches_at_other_rates_are_made_in_the_same_way():
    data = TensorDataset(torch.arange(1000.0), torch.as_tensor(TARGETS))

    def collate(rows):
        x, target = zip(*rows, strict=True)
        return -torch.stack(x), torch.stack(target)

    loader = ClassSampledLoader(data, batch_size=300, collate_fn=collate, drop_last=True)
    rare = batches_at_rates(loader, lambda counts: [0, 0, 1])
    assert len(rare) == len(loader) == 3
    assert all((x <= -990).all() and (target == 2).all() for x, target in rare)
