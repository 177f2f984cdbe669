import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbmargin import class_rates, class_weights, effective_number
from imbmargin.data.imbalance import long_tailed_counts, step_counts
from imbmargin.weights import CLASS_WEIGHTS, RESAMPLING, class_counts

COUNTS = st.lists(st.integers(1, 10**6), min_size=2, max_size=20)


def test_class_counts_has_a_place_for_every_class():
    assert class_counts([2, 0, 2], 4).tolist() == [1, 0, 2, 0]
    assert class_counts([], 2).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"y_encoded must have labels 0..1, got 0..2; encode"):
        class_counts([0, 2], 2)


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.9999])
def test_effective_number_is_the_geometric_sum(beta):
    expected = [sum(beta**i for i in range(n)) for n in (0, 1, 5, 5000)]
    np.testing.assert_allclose(effective_number([0, 1, 5, 5000], beta), expected, rtol=1e-10)


def test_effective_number_at_its_limits():
    assert effective_number([0, 1, 50], beta=0).tolist() == [0, 1, 1]
    np.testing.assert_allclose(effective_number([3, 7], beta=1 - 1e-14), [3, 7], rtol=0.01)


PUBLISHED_WEIGHTS = [
    (
        "effective_number",
        long_tailed_counts(5000, 10, 100),
        [0.0506, 0.0769, 0.1211, 0.1950, 0.3188, 0.5246, 0.8683, 1.4426, 2.4092, 3.9927],
    ),
    (
        "effective_number",
        long_tailed_counts(5000, 10, 10),
        [0.2923, 0.3584, 0.4442, 0.5555, 0.6997, 0.8858, 1.1266, 1.4375, 1.8415, 2.3585],
    ),
    ("effective_number", step_counts(5000, 10, 100), [0.0250] * 5 + [1.9750] * 5),
    ("effective_number", [100, 10, 1], [0.0272, 0.2704, 2.7025]),
    (
        "inverse",
        long_tailed_counts(5000, 10, 100),
        [0.0402, 0.0671, 0.1120, 0.1868, 0.3119, 0.5199, 0.8672, 1.4474, 2.4239, 4.0236],
    ),
]


@pytest.mark.parametrize(("scheme", "counts", "expected"), PUBLISHED_WEIGHTS)
def test_published_weights(scheme, counts, expected):
    np.testing.assert_allclose(class_weights(counts, scheme), expected, atol=6e-5)


def test_published_weights_of_another_beta_and_of_cifar_100():
    weights = class_weights([100, 10, 1], "effective_number", beta=0.9)
    np.testing.assert_allclose(weights, [0.2393, 0.3674, 2.3932], atol=6e-5)
    weights = class_weights(long_tailed_counts(500, 100, 100), "effective_number")
    np.testing.assert_allclose(weights[[0, -1]], [0.0449, 4.378], atol=6e-4)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (
            long_tailed_counts(5000, 10, 100),
            [0.1193, 0.1086, 0.1026, 0.0990, 0.0969, 0.0957, 0.0950, 0.0945, 0.0943, 0.0941],
        ),
        (step_counts(5000, 10, 100), [0.1118] * 5 + [0.0882] * 5),
    ],
)
def test_published_rates(counts, expected):
    np.testing.assert_allclose(class_rates(counts, "effective_number"), expected, atol=6e-5)


@given(COUNTS)
@settings(derandomize=True, deadline=None)
def test_named_weights_fall_with_the_counts(counts):
    order = np.argsort(counts, kind="stable")
    for scheme in CLASS_WEIGHTS:
        weights = class_weights(counts, scheme)
        assert (np.diff(weights[order]) <= 1e-12 * weights.max()).all()
    assert class_weights(counts, "inverse").sum() == pytest.approx(len(counts))
    balanced = class_weights(counts, "balanced")
    assert (balanced * counts).sum() == pytest.approx(sum(counts))


@given(COUNTS, st.floats(0, 1))
@settings(derandomize=True, deadline=None)
def test_named_rates_are_probabilities(counts, progress):
    for scheme in (None, *RESAMPLING):
        rates = class_rates(counts, scheme, progress=progress)
        assert rates.sum() == pytest.approx(1)
        assert (rates > 0).all()


def test_rates_by_scheme():
    counts = [90, 10, 0]
    assert class_rates(counts, None).tolist() == [0.9, 0.1, 0]
    assert class_rates(counts, "class_balanced").tolist() == [0.5, 0.5, 0]
    root = np.sqrt([90, 10, 0])
    np.testing.assert_allclose(class_rates(counts, "square_root"), root / root.sum())
    for progress, expected in ((0, [0.9, 0.1, 0]), (1, [0.5, 0.5, 0]), (0.25, [0.8, 0.2, 0])):
        rates = class_rates(counts, "progressive", progress=progress)
        np.testing.assert_allclose(rates, expected)


def test_a_class_without_rows_weighs_nothing_in_the_named_schemes():
    for scheme in CLASS_WEIGHTS:
        weights = class_weights([5, 0, 10], scheme)
        assert weights[1] == 0
        assert (weights[[0, 2]] > 0).all()


def test_a_dict_is_by_label():
    labels = ["a", "b", "c"]
    assert class_weights([1, 2, 3], {"c": 5, "a": 0}, classes=labels).tolist() == [0, 1, 5]
    assert class_weights([1, 2], {1: 3.0}).tolist() == [1, 3]
    rates = class_rates([1, 2, 0], {"a": 3, "c": 100}, classes=labels)
    assert rates.tolist() == [0.75, 0.25, 0]


def test_a_function_gets_the_counts():
    assert class_weights([4, 16], lambda counts: 1 / np.sqrt(counts)).tolist() == [0.5, 0.25]
    assert class_rates([4, 12], lambda counts: counts).tolist() == [0.25, 0.75]
    assert class_weights([4, 16], None).tolist() == [1, 1]


@pytest.mark.parametrize("function", [class_weights, class_rates])
@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("uniform", r"must be one of \[.*a dict by label, a function.*got 'uniform'"),
        (3.5, r"must be one of .*got 3.5"),
        ({"z": 1}, r"has labels \['z'\] that are not among the classes \['a', 'b'\]"),
        ({"a": -1}, r"must give finite values of 0 or more, not all 0, got \[-1.0, 1.0\]"),
        ({"a": np.nan}, "must give finite values"),
        ({"a": 0, "b": 0}, r"not all 0, got \[0.0, 0.0\]"),
        (lambda counts: [1.0], r"one value for each of the 2 classes, got shape \(1,\)"),
    ],
)
def test_schemes_that_cannot_be_used(function, scheme, message):
    with pytest.raises(ValueError, match=message):
        function([5, 5], scheme, classes=["a", "b"])


@pytest.mark.parametrize("counts", [[], [0, 0], [-1, 2], [np.nan, 1], [[1, 2]]])
def test_counts_that_cannot_be_used(counts):
    for function in (class_weights, class_rates):
        with pytest.raises(ValueError, match="class_counts must be a 1-D array of counts"):
            function(counts, None)


def test_other_arguments_out_of_range():
    with pytest.raises(ValueError, match="beta must be at least 0 and below 1, got 1"):
        effective_number([1], beta=1)
    with pytest.raises(ValueError, match=r"progress must be in \[0, 1\], got 2"):
        class_rates([1, 1], "progressive", progress=2)
    with pytest.raises(ValueError, match="gives every class with rows the rate 0"):
        class_rates([1, 0], {0: 0.0})


def test_rates_of_another_beta():
    counts = np.array([100, 10, 1])
    rate = counts / effective_number(counts, 0.9)
    found = class_rates(counts, "effective_number", beta=0.9)
    np.testing.assert_allclose(found, rate / rate.sum())
