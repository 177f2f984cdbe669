import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.utils.data import Subset, TensorDataset

from imbmargin.data import batches
from imbmargin.data.batches import ArrayBatches, ArrayDataset, as_arrays, targets_of
from imbmargin.data.split import StratifiedSplit
from imbmargin.samplers import ClassSampler

X = np.arange(40, dtype=np.float64).reshape(10, 4)
Y = np.arange(10)


def collect(batches):
    x, y = zip(*batches, strict=True)
    return torch.cat(x), torch.cat(y)


@pytest.mark.parametrize(
    "data",
    [X, X.astype(np.float32), sp.csr_matrix(X), sp.csr_array(X), torch.from_numpy(X)],
    ids=["float64", "float32", "csr_matrix", "csr_array", "tensor"],
)
def test_batches_hold_the_rows_in_order_as_float32(data):
    x, y = collect(ArrayBatches(ArrayDataset(data, Y), batch_size=3))
    assert x.dtype == torch.float32
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


def test_rows_are_gathered_for_several_batches_at_once(monkeypatch):
    monkeypatch.setattr(batches, "_BLOCK_BYTES", 16 * 7)  # seven rows
    data = ArrayDataset(X, Y, sample_weight=Y)
    fetched, inner = [], data.fetch
    monkeypatch.setattr(data, "fetch", lambda part: fetched.append(part) or inner(part))
    sampler = ClassSampler(Y, generator=torch.Generator().manual_seed(0))
    order = ClassSampler(Y, generator=torch.Generator().manual_seed(0)).draw()
    found = list(ArrayBatches(data, batch_size=3, sampler=sampler))
    # Of 10 rows the last one joins the batch before it.
    assert [len(rows) for rows in fetched] == [6, 4]
    assert [len(x) for x, _ in found] == [3, 3, 4]
    assert torch.equal(torch.cat([target for _, (target, _) in found]), order)
    assert torch.equal(torch.cat([weight for _, (_, weight) in found]), order.float())
    np.testing.assert_array_equal(torch.cat([x for x, _ in found]), X[order])
    assert [len(x) for x, _ in ArrayBatches(data, batch_size=8)] == [8, 2]


def test_uint8_stays_compact():
    x, _ = next(iter(ArrayBatches(ArrayDataset(np.ones((4, 1, 2, 2), np.uint8), np.zeros(4)))))
    assert x.dtype == torch.uint8


def test_read_only_memory_maps_are_read_by_the_batch(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    x, _ = collect(ArrayBatches(ArrayDataset(mapped, Y), batch_size=4))
    np.testing.assert_array_equal(x, X)


def test_a_subset_of_a_subset_yields_its_own_rows():
    part = Subset(Subset(ArrayDataset(X, Y), [9, 7, 5, 3]), [2, 0])
    _, y = collect(ArrayBatches(part, batch_size=8))
    assert y.tolist() == [5, 9]
    assert targets_of(part).tolist() == [5, 9]


def test_a_sampler_draws_within_the_subset():
    part = Subset(ArrayDataset(X, Y % 2), [1, 2, 3, 4])
    batches = ArrayBatches(part, batch_size=2, sampler=ClassSampler(targets_of(part)))
    x, _ = collect(batches)
    assert sorted(x[:, 0].tolist()) == [4, 8, 12, 16]


def test_a_last_training_batch_of_one_row_joins_the_one_before():
    data = ArrayDataset(X[:9], Y[:9] % 2)
    drawn = ArrayBatches(data, batch_size=4, sampler=ClassSampler(Y[:9] % 2))
    assert [len(x) for x, _ in drawn] == [4, 5]
    assert len(drawn) == 2
    in_order = ArrayBatches(data, batch_size=4)
    assert [len(x) for x, _ in in_order] == [4, 4, 1]
    assert len(in_order) == 3


def test_sample_weights_travel_with_their_rows():
    data = ArrayDataset(X, Y, sample_weight=Y / 10)
    for _, (target, weight) in ArrayBatches(Subset(data, [3, 8]), batch_size=1):
        assert weight == pytest.approx(target.item() / 10)


def test_single_rows_agree_with_batches():
    data = ArrayDataset(X, Y, sample_weight=Y)
    x, (target, weight) = data[6]
    assert x.tolist() == X[6].tolist()
    assert (target, weight) == (6, 6)


def test_batch_size_zero_is_an_error():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        ArrayBatches(ArrayDataset(X, Y), batch_size=0)


def test_other_datasets_are_refused():
    with pytest.raises(TypeError, match="must be an ArrayDataset"):
        as_arrays(TensorDataset(torch.zeros(2)))


class Plain(torch.utils.data.Dataset):
    labels = ("head", "tail", "names of classes, not of rows")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index >= 4:
            raise IndexError
        return torch.zeros(2), index % 2


def test_targets_are_found_by_walking_when_no_attribute_has_them():
    assert targets_of(Plain()).tolist() == [0, 1, 0, 1]


def test_a_dataset_without_pairs_is_an_error():
    class Bare(Plain):
        def __getitem__(self, index):
            return torch.zeros(2)

    with pytest.raises(TypeError, match="rows are \\(input, target\\) pairs, got Bare"):
        targets_of(Bare())


def test_split_holds_out_of_every_class_but_never_its_last_row():
    target = np.repeat([0, 1, 2], [100, 10, 1])
    train, valid = StratifiedSplit(0.2)(ArrayDataset(np.zeros((111, 1)), target))
    assert np.bincount(targets_of(valid), minlength=3).tolist() == [20, 2, 0]
    assert np.bincount(targets_of(train), minlength=3).tolist() == [80, 8, 1]
    assert not set(train.indices) & set(valid.indices)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 2])
def test_split_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match="train_split must be a fraction between 0 and 1"):
        StratifiedSplit(fraction)


def test_split_that_holds_out_nothing():
    with pytest.raises(ValueError, match="holds out no row of 4"):
        StratifiedSplit(0.1)(ArrayDataset(np.zeros((4, 1)), [0, 0, 1, 1]))


@pytest.mark.parametrize("index", [slice(0, 2), torch.tensor([0, 1])])
def test_batches_are_copies_that_may_be_changed(index):
    data = X.astype(np.float32)
    ArrayDataset(data, Y).fetch(index)[0].zero_()
    np.testing.assert_array_equal(data, X)


@pytest.mark.parametrize("dtype", [">f4", "u2", "f2", "?"])
def test_types_that_torch_does_not_share_are_converted(dtype):
    data = (X % 2).astype(dtype)
    x, _ = collect(ArrayBatches(ArrayDataset(data, Y), batch_size=3))
    np.testing.assert_array_equal(x.float(), X % 2)


def test_rows_that_run_backwards():
    x, _ = collect(ArrayBatches(ArrayDataset(X[::-1, ::-1], Y), batch_size=3))
    np.testing.assert_array_equal(x, X[::-1, ::-1])


def test_a_pickle_holds_the_rows_once():
    data = ArrayDataset(np.zeros((1000, 50), np.float32), np.zeros(1000))
    content = pickle.dumps(data)
    assert len(content) < 1.2 * 1000 * 50 * 4
    assert pickle.loads(content).fetch(slice(0, 3))[0].shape == (3, 50)


def test_data_stay_where_they_are_on_the_cpu():
    data = ArrayDataset(X, Y)
    assert data.resident_on(torch.device("cpu")) is data


@pytest.mark.cuda
@pytest.mark.parametrize("fits", [True, False])
def test_batches_reach_a_cuda_device(monkeypatch, fits):
    if not fits:
        monkeypatch.setattr(batches, "_fits", lambda *_: False)
    data = ArrayDataset(X, Y, sample_weight=Y)
    sampler = ClassSampler(Y)
    drawn = ArrayBatches(data, 4, sampler, device="cuda")
    assert (drawn.dataset.device.type == "cuda") == fits
    rows = []
    for x, (target, weight) in drawn:
        assert x.device.type == target.device.type == weight.device.type == "cuda"
        np.testing.assert_array_equal(x[:, 0].cpu(), 4 * target.cpu())
        rows += target.tolist()
    assert sorted(rows) == list(range(10))


class Stored(TensorDataset):
    """Targets that are stored before their transform, as torchvision's, or after it."""

    def __init__(self, targets, target_transform, stores_transformed=False):
        super().__init__(torch.zeros(len(targets), 2))
        self.raw, self.target_transform = targets, target_transform
        self.targets = [target_transform(t) for t in targets] if stores_transformed else targets

    def __getitem__(self, i):
        return super().__getitem__(i)[0], self.target_transform(self.raw[i])


@pytest.mark.parametrize("stores_transformed", [False, True])
@pytest.mark.parametrize("transform", [lambda t: int(t == 0), lambda t: 2 - t, lambda t: t])
def test_targets_are_those_of_the_rows_if_a_dataset_transforms_them(transform, stores_transformed):
    data = Stored([2, 0, 1, 0, 2], transform, stores_transformed)
    assert targets_of(data).tolist() == [target for _, target in data]
    assert targets_of(Subset(data, [1, 2])).tolist() == [data[1][1], data[2][1]]
