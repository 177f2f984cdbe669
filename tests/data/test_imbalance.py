"""Imbalanced subsets: published counts, containers, imbalanced-learn's interface."""

import re

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from imblearn.pipeline import make_pipeline
from imblearn.utils.estimator_checks import parametrize_with_checks
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from imbmargin.data.imbalance import (
    LongTailedSampler,
    StepSampler,
    long_tailed_counts,
    long_tailed_indices,
    make_long_tailed,
    make_step,
    step_counts,
)

C100_LT100 = """500 477 455 434 415 396 378 361 344 328 314 299 286 273 260 248 237 226 216 206 197
188 179 171 163 156 149 142 135 129 123 118 112 107 102 98 93 89 85 81 77 74 70 67 64 61 58 56 53 51
48 46 44 42 40 38 36 35 33 32 30 29 27 26 25 24 23 22 21 20 19 18 17 16 15 15 14 13 13 12 12 11 11
10 10 9 9 8 8 7 7 7 6 6 6 6 5 5 5 5"""
C100_LT10 = """500 488 477 466 455 445 434 424 415 405 396 387 378 369 361 352 344 336 328 321 314
306 299 292 286 279 273 266 260 254 248 243 237 232 226 221 216 211 206 201 197 192 188 183 179 175
171 167 163 159 156 152 149 145 142 139 135 132 129 126 123 121 118 115 112 110 107 105 102 100 98
95 93 91 89 87 85 83 81 79 77 75 74 72 70 69 67 66 64 63 61 60 58 57 56 54 53 52 51 50"""


@pytest.mark.parametrize(
    ("n_max", "n_classes", "ratio", "expected"),
    [
        (5000, 10, 100, "5000 2997 1796 1077 645 387 232 139 83 50"),
        (5000, 10, 50, "5000 3237 2096 1357 878 568 368 238 154 100"),
        (5000, 10, 10, "5000 3871 2997 2320 1796 1391 1077 834 645 500"),
        (500, 100, 100, C100_LT100),
        (500, 100, 10, C100_LT10),
    ],
)
def test_published_long_tailed_counts(n_max, n_classes, ratio, expected):
    counts = long_tailed_counts(n_max, n_classes, ratio)
    assert counts.dtype == np.int64
    assert counts.tolist() == [int(n) for n in expected.split()]


@pytest.mark.parametrize(
    ("n_max", "n_classes", "ratio", "total"),
    [
        (5000, 10, 100, 12406),
        (5000, 10, 50, 13996),
        (5000, 10, 10, 20431),
        (500, 100, 100, 10847),
        (500, 100, 50, 12608),
        (500, 100, 10, 19573),
    ],
)
def test_published_long_tailed_totals(n_max, n_classes, ratio, total):
    assert long_tailed_counts(n_max, n_classes, ratio).sum() == total


@pytest.mark.parametrize(
    ("n_max", "n_classes", "ratio", "rare"),
    [(5000, 10, 100, 50), (5000, 10, 10, 500), (500, 100, 100, 5), (500, 100, 10, 50)],
)
def test_published_step_counts(n_max, n_classes, ratio, rare):
    half = n_classes // 2
    assert step_counts(n_max, n_classes, ratio).tolist() == [n_max] * half + [rare] * half


@pytest.mark.parametrize(
    ("n_classes", "fraction", "rare"),
    # With an odd number the middle class is frequent, as c < C/2 says; 0.29 * 100 is below 29.
    [(3, 0.5, 1), (5, 0.5, 2), (10, 0.7, 7), (100, 0.29, 29), (3, 1 / 3, 1), (2, 0.99, 1)],
)
def test_step_counts_cut_the_number_of_rare_classes(n_classes, fraction, rare):
    counts = step_counts(20, n_classes, 10, minority_fraction=fraction)
    assert counts.tolist() == [20] * (n_classes - rare) + [2] * rare


def test_the_ratio_is_taken_in_double_precision():
    counts = long_tailed_counts(np.int32(5000), np.int64(10), np.float32(100))
    assert counts.tolist() == long_tailed_counts(5000, 10, 100).tolist()


@given(
    n_max=st.integers(1, 10**6),
    n_classes=st.integers(2, 200),
    ratio=st.floats(1, 10**4),
)
def test_long_tailed_counts_fall_from_n_max_to_the_ratio(n_max, n_classes, ratio):
    assume(n_max >= 1.001 * ratio)
    counts = long_tailed_counts(n_max, n_classes, ratio)
    assert counts[0] == n_max
    assert (np.diff(counts) <= 0).all()
    assert abs(counts[-1] - n_max / ratio) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10, 2), "n_max must be an integer of at least 1, got 0"),
        ((10.5, 10, 2), "n_max must be an integer of at least 1, got 10.5"),
        ((10, 1, 2), "n_classes must be an integer of at least 2, got 1"),
        (
            (10, 10, 0.5),
            "imbalance_ratio must be a number of at least 1, got 0.5; it is n_max / n_min, so "
            "pass 2",
        ),
        ((10, 10, float("nan")), "imbalance_ratio must be a number of at least 1, got nan"),
        ((10, 10, float("inf")), "imbalance_ratio must be a number of at least 1, got inf"),
        ((10, 10, "100"), "imbalance_ratio must be a number of at least 1, got '100'"),
    ],
)
@pytest.mark.parametrize("count", [long_tailed_counts, step_counts])
def test_counts_refuse(count, arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        count(*arguments)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, float("nan"), "half"])
def test_minority_fraction_must_be_a_fraction(fraction):
    message = f"minority_fraction must be a number between 0 and 1, got {fraction!r}; 0.5 makes"
    with pytest.raises(ValueError, match=re.escape(message)):
        step_counts(100, 10, 10, minority_fraction=fraction)


def test_minority_fraction_must_make_a_class_rare():
    message = "minority_fraction=0.1 of 5 classes leaves no rare class; pass 1/5 or more"
    with pytest.raises(ValueError, match=f"^{message}$"):
        step_counts(100, 5, 10, minority_fraction=0.1)


@pytest.mark.parametrize(
    ("count", "n_max", "ratio", "message"),
    [
        (
            long_tailed_counts,
            50,
            1000,
            "imbalance_ratio=1000 with n_max=50 leaves class 6 without rows (4 of 10 classes); "
            "pass imbalance_ratio=50 or less, or n_max=1000 or more",
        ),
        (
            step_counts,
            50,
            1000,
            "imbalance_ratio=1000 with n_max=50 leaves class 5 without rows (5 of 10 classes); "
            "pass imbalance_ratio=50 or less, or n_max=1000 or more",
        ),
        (
            long_tailed_counts,
            49,
            49,
            "imbalance_ratio=49 with n_max=49 leaves class 9 without rows (1 of 10 classes); "
            "pass imbalance_ratio=48 or less, or n_max=50 or more",
        ),
    ],
)
def test_empty_classes_are_an_error_with_bounds_that_work(count, n_max, ratio, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        count(n_max, 10, ratio)


@given(n_max=st.integers(1, 2000), ratio=st.floats(1, 5000))
def test_the_bounds_in_the_error_work(n_max, ratio):
    try:
        long_tailed_counts(n_max, 4, ratio)
    except ValueError as error:
        largest, least = re.search(r"=(\d+) or less, or n_max=(\d+) or more", str(error)).groups()
        assert long_tailed_counts(n_max, 4, int(largest)).min() == 1
        assert long_tailed_counts(int(least), 4, ratio).min() == 1
        with pytest.raises(ValueError, match="without rows"):
            long_tailed_counts(int(least) - 1, 4, ratio)


Y = np.tile([3, 7], 20)
CONTAINERS = {
    "array": lambda X: X,
    "images": lambda X: X.reshape(40, 3, 1, 1),
    "list": lambda X: X.tolist(),
    "tensor": torch.as_tensor,
    "pandas": lambda X: pd.DataFrame(X, columns=["a", "b", "c"], index=range(100, 140)),
    "polars": lambda X: pl.DataFrame(X, schema=["a", "b", "c"]),
    "csr": sp.csr_matrix,
    "coo": sp.coo_array,
}


def to_array(rows):
    array = rows.toarray() if sp.issparse(rows) else np.asarray(rows)
    return array.reshape(len(array), -1)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("make", [make_long_tailed, make_step])
def test_containers_keep_their_type(make, container):
    dense = np.arange(120.0).reshape(40, 3)
    X = CONTAINERS[container](dense)
    X_s, y_s, indices = make(X, Y, imbalance_ratio=5, random_state=0, return_indices=True)
    assert type(X_s) is type(X)
    assert len(indices) == len(y_s) == 24
    assert (to_array(X_s) == dense[indices]).all()
    assert (y_s == Y[indices]).all()
    if container == "pandas":
        assert X_s.index.tolist() == (indices + 100).tolist()


LABELS = {
    "list of str": [str(label) for label in Y],
    "tensor": torch.as_tensor(Y),
    "pandas": pd.Series(Y, name="label").astype("category"),
    "polars": pl.Series(Y),
    "bool": Y == 7,
}


@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
def test_labels_of_any_type_keep_it(y):
    X_s, y_s = make_long_tailed(np.arange(40), y, imbalance_ratio=5, random_state=0)
    assert type(y_s) is type(y)
    assert [str(label) for label in y_s] == [str(y[row]) for row in X_s.tolist()]


def test_indices_serve_a_torch_dataset():
    dataset = torch.utils.data.TensorDataset(torch.arange(40), torch.as_tensor(Y))
    subset = torch.utils.data.Subset(dataset, long_tailed_indices(Y, imbalance_ratio=20))
    assert sorted(int(label) for _, label in subset) == [3] * 20 + [7]


# ---- imbalanced-learn's interface ----------------------------------------------------------------

# The data of these checks are imbalanced themselves: a small head leaves rows for every class.
CHECKS = parametrize_with_checks(
    [
        LongTailedSampler(imbalance_ratio=1.25, n_max=8, random_state=0),
        StepSampler(imbalance_ratio=1.25, n_max=8, random_state=0),
    ]
).mark


@pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), ids=CHECKS.kwargs["ids"])
def test_imbalanced_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("sampler", "make"),
    [
        (LongTailedSampler(5, random_state=0), make_long_tailed),
        (StepSampler(5, minority_fraction=0.5, random_state=0), make_step),
        (LongTailedSampler(5, n_max=10, class_order=[7, 3], protocol="ldam"), make_long_tailed),
    ],
)
def test_samplers_are_the_functions(sampler, make):
    X = np.arange(80).reshape(40, 2)
    X_m, y_m, indices = make(X, Y, **sampler.get_params(), return_indices=True)
    X_s, y_s = sampler.fit_resample(X, Y)
    assert (X_s == X_m).all()
    assert (y_s == y_m).all()
    assert (sampler.sample_indices_ == indices).all()
    assert sampler.sampling_strategy_ == dict(
        zip(*(part.tolist() for part in np.unique(y_m, return_counts=True)), strict=True)
    )


def test_sampler_keeps_data_frames_with_their_index():
    X = pd.DataFrame({"age": range(40), "name": ["x", None] * 20}, index=range(100, 140))
    y = pd.Series(np.where(Y == 7, "yes", "no"), index=X.index, name="answer")
    X_s, y_s = StepSampler(5, random_state=0).fit_resample(X, y)
    pd.testing.assert_frame_equal(X_s, X.loc[X_s.index])
    pd.testing.assert_series_equal(y_s, y.loc[X_s.index])


@pytest.mark.parametrize("container", ["images", "polars", "tensor"])
def test_sampler_takes_what_scikit_learn_would_refuse(container):
    X = CONTAINERS[container](np.arange(120.0).reshape(40, 3))
    X_s, y_s = LongTailedSampler(5).fit_resample(X, Y)
    assert type(X_s) is type(X)
    assert len(X_s) == len(y_s) == 24


def test_sampler_in_a_pipeline(table):
    X, y = table
    sampler = LongTailedSampler(imbalance_ratio=1000, random_state=0)
    pipeline = make_pipeline(StandardScaler(), sampler, LogisticRegression())
    with pytest.raises(ValueError, match=r"leaves class 2 without rows .* or less$"):
        pipeline.fit(X, y)
    pipeline = clone(pipeline).set_params(longtailedsampler__imbalance_ratio=20)
    pipeline.fit(X, y)
    n_rows = long_tailed_counts(np.bincount(y)[0], 3, 20).sum()
    assert len(pipeline["longtailedsampler"].sample_indices_) == n_rows
    assert len(pipeline.predict(X)) == len(X)


def test_sampler_checks_its_parameters_in_fit():
    with pytest.raises(ValueError, match=r"imbalance_ratio must be .* so pass 100$"):
        LongTailedSampler(imbalance_ratio=0.01).fit(np.zeros((40, 1)), Y)
