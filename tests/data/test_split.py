import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from imbmargin.data.split import StratifiedSplit


def dataset(counts):
    target = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return TensorDataset(torch.arange(len(target)), target), target.numpy()


def test_a_fraction_of_each_class_is_held_out_and_no_row_is_lost():
    data, target = dataset([50, 10, 3, 1])
    train, valid = StratifiedSplit(0.3)(data)
    assert np.bincount(target[valid.indices], minlength=4).tolist() == [15, 3, 1, 0]
    assert sorted([*train.indices, *valid.indices]) == list(range(64))


def test_one_row_of_each_class_stays():
    data, target = dataset([10, 2, 1])
    train, _ = StratifiedSplit(0.9)(data)
    assert np.bincount(target[train.indices]).tolist() == [1, 1, 1]


def test_the_rows_follow_torchs_seed():
    data, target = dataset([30, 30])
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(StratifiedSplit(0.5)(data, target)[1].indices)
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 5])
def test_fractions_out_of_range(fraction):
    with pytest.raises(ValueError, match=f"train_split must be a fraction .*got {fraction}"):
        StratifiedSplit(fraction)


def test_nothing_held_out():
    with pytest.raises(ValueError, match="holds out no row of 4; pass a larger fraction"):
        StratifiedSplit(0.1)(dataset([2, 2])[0])


def test_a_rare_class_has_a_row_in_both_parts():
    data, target = dataset([50, 4, 2, 1])
    train, valid = StratifiedSplit(0.1)(data, target)
    assert np.bincount(target[valid.indices]).tolist() == [5, 1, 1]
    assert np.bincount(target[train.indices]).tolist() == [45, 3, 1, 1]


def test_single_rows_are_not_held_out():
    with pytest.raises(ValueError, match="holds out no row of 3"):
        StratifiedSplit(0.9)(dataset([1, 1, 1])[0])
