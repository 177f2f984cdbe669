"""Scores by class equal scikit-learn's and imbalanced-learn's where these have them."""

import re
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from imblearn.metrics import sensitivity_score
from sklearn.metrics import balanced_accuracy_score, recall_score

from imbmargin.metrics import balanced_accuracy, group_accuracy, per_class_error, sample_margins

labels = st.sampled_from([0, 3, 7, 11])
pairs = st.lists(st.tuples(labels, labels), min_size=1, max_size=40)


@given(pairs)
def test_per_class_error_is_one_less_the_recall(rows):
    true, pred = zip(*rows, strict=True)
    recall = recall_score(true, pred, labels=np.unique(true), average=None, zero_division=np.nan)
    assert per_class_error(true, pred) == pytest.approx(1 - recall)


@given(pairs)
def test_balanced_accuracy_is_scikit_learns_to_the_bit_and_silent(rows):
    true, pred = zip(*rows, strict=True)
    ours = balanced_accuracy(true, pred)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ours == balanced_accuracy_score(true, pred)


def test_balanced_accuracy_is_silent_where_scikit_learn_warns():
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score([0, 0, 1], [0, 2, 1])
    assert balanced_accuracy([0, 0, 1], [0, 2, 1]) == expected == 0.75


def test_per_class_error_is_one_less_the_sensitivity():
    rng = np.random.default_rng(0)
    true, pred = rng.integers(0, 4, (2, 200))
    sensitivity = sensitivity_score(true, pred, average=None)
    assert per_class_error(true, pred) == pytest.approx(1 - sensitivity)


def test_labels_set_the_order_and_absent_classes_are_nan():
    error = per_class_error(["b", "b", "a"], ["b", "a", "a"], labels=["b", "c", "a"])
    np.testing.assert_array_equal(error, [0.5, np.nan, 0.0])


@pytest.mark.parametrize(
    "wrap",
    [
        list,
        np.array,
        pd.Series,
        lambda y: pd.Series(y, dtype=object),
        lambda y: pd.Series(y).astype("category"),
        pl.Series,
    ],
)
@pytest.mark.parametrize("y", [["x", "x", "y"], [5, 5, 7], [True, True, False]])
def test_labels_of_any_type(wrap, y):
    pred = [y[2], y[0], y[2]]
    expected = [0.0, 0.5] if y[2] == 0 else [0.5, 0.0]
    assert per_class_error(wrap(y), wrap(pred)).tolist() == expected


def test_object_and_string_labels_are_compared():
    assert per_class_error(np.array(["a", "b"], dtype=object), ["a", "a"]).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("true", "pred", "message"),
    [
        ([0, 1], [0], "of the same length, got shapes (2,) and (1,)"),
        ([[0], [1]], [[0], [1]], "must be 1-D, not empty and of the same length"),
        ([], [], "must be 1-D, not empty"),
        (
            ["cat", "dog"],
            [0, 1],
            "y_true and y_pred must have labels of one type, got 'cat' and 0; decode the "
            "predictions, for instance by clf.classes_[y_pred]",
        ),
    ],
)
@pytest.mark.parametrize("score", [per_class_error, balanced_accuracy])
def test_labels_that_do_not_fit_are_refused(score, true, pred, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        score(true, pred)


def test_groups_are_bounded_as_documented():
    counts = [101, 100, 20, 19]
    true, pred = [0, 1, 2, 3], [0, 1, 0, 3]
    accuracy = group_accuracy(true, pred, class_counts=counts)
    assert accuracy == {"many": 1.0, "medium": 0.5, "few": 1.0}
    # The bounds are arguments: class 1 becomes frequent, class 2 rare.
    moved = group_accuracy(true, pred, class_counts=counts, many=99, few=21)
    assert moved == pytest.approx({"many": 1.0, "medium": np.nan, "few": 0.5}, nan_ok=True)


def test_groups_are_means_over_classes_that_were_seen():
    accuracy = group_accuracy(
        ["a"] * 9 + ["b"],
        ["a"] * 9 + ["a"],
        class_counts=[500, 400, 300],
        labels=["a", "b", "absent"],
    )
    assert accuracy == pytest.approx({"many": 0.5, "medium": np.nan, "few": np.nan}, nan_ok=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"class_counts": [5, 5, 5]},
            "class_counts must have one count for each of the 2 classes, got shape (3,); pass "
            "labels= if y_true lacks a class",
        ),
        (
            {"class_counts": [5, 5], "many": 10},
            "few must not be above many, got few=20 and many=10",
        ),
    ],
)
def test_groups_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        group_accuracy([0, 1], [0, 1], **options)


def loop_margins(z, y):
    return [row[c] - max(v for j, v in enumerate(row) if j != c) for row, c in zip(z, y)]  # noqa: B905


@pytest.mark.parametrize("shift", [0, -5])
def test_margins_equal_a_loop_also_where_all_logits_are_negative(shift):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(50, 4)) + shift, rng.integers(0, 4, 50)
    before = z.copy()
    assert sample_margins(z, y).tolist() == loop_margins(z.tolist(), y.tolist())
    assert (z == before).all()
    assert ((sample_margins(z, y) > 0) == (z.argmax(1) == y)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_margins_of_tensors(dtype):
    z = torch.tensor([[0.5, 0.25, -1.0], [0.5, 0.25, -1.0]], dtype=dtype, requires_grad=True)
    margin = sample_margins(z, torch.tensor([0, 2]))
    assert isinstance(margin, np.ndarray)
    assert margin.dtype == np.float64
    assert margin.tolist() == [0.25, -1.5]


def test_margins_of_a_binary_decision_function():
    difference = np.array([0.75, -0.5, 0.25])
    assert sample_margins(difference, [1, 0, 0]).tolist() == [0.75, 0.5, -0.25]


def test_a_tie_has_margin_zero():
    assert sample_margins([[1.0, 1.0]], [0]).tolist() == [0.0]


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        ([[1.0]], [0], "logits must have shape (n, K) with K >= 2 and target shape (n,), got (1,"),
        ([[1.0, 2.0]], [0, 1], "got (1, 2) and (2,)"),
        ([[1.0, 2.0]], [-1], "target must have encoded labels 0..1, got [-1]; encode the labels"),
        ([[1.0, 2.0]], [2], "target must have encoded labels 0..1, got [2]"),
        ([[1.0, 2.0]], ["a"], "target must have encoded labels 0..1, got ['a']"),
        ([[1.0, 2.0]], [0.5], "target must have encoded labels 0..1, got [0.5]"),
    ],
)
def test_margins_that_do_not_fit_are_refused(logits, target, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sample_margins(logits, target)
