"""Which rows are chosen: the legacy selection, seeds, class order, errors."""

import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from imbmargin.data.imbalance import (
    long_tailed_counts,
    long_tailed_indices,
    make_long_tailed,
    step_counts,
    step_indices,
)

ORDERS = {
    "class by class": lambda k, n: np.repeat(np.arange(k), n),
    "in turn": lambda k, n: np.tile(np.arange(k), n),
    "mixed": lambda k, n: np.random.default_rng(3).permutation(np.repeat(np.arange(k), n)),
}
SELECTED = {
    (10, 5000): {
        0: [398, 3833, 4836, 4572, 636, 2545, 1161, 2230],
        1: [597, 332, 521, 3935, 4800, 1102, 4304, 1826],
        9: [2204, 3816, 2206, 2507, 1926, 4765, 368, 3808],
    },
    (100, 500): {
        0: [90, 254, 283, 445, 461, 15, 316, 489],
        1: [277, 307, 436, 88, 261, 57, 413, 459],
        99: [348, 153, 363, 361, 299, 353, 338, 99],
    },
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("n_classes", "size"), SELECTED)
def test_ldam_protocol_selects_the_published_rows(n_classes, size, order):
    y = ORDERS[order](n_classes, size)
    # At this ratio every class keeps the 8 rows or more that are compared.
    indices = long_tailed_indices(y, imbalance_ratio=size / 10, protocol="ldam")
    assert y[indices].tolist() == sorted(y[indices])
    for label, positions in SELECTED[n_classes, size].items():
        own = np.flatnonzero(y == label)
        assert indices[y[indices] == label][:8].tolist() == own[positions].tolist()


def released_selection(y, counts):
    """Select rows as the published loader does, on the legacy global stream."""
    state = np.random.get_state()
    np.random.seed(0)
    chosen = []
    for label, n in zip(np.unique(y), counts, strict=True):
        rows = np.where(y == label)[0]
        np.random.shuffle(rows)
        chosen.append(rows[:n])
    np.random.set_state(state)
    return np.concatenate(chosen)


@pytest.mark.parametrize("ratio", [1, 10, 100])
@pytest.mark.parametrize("kind", ["long_tailed", "step"])
def test_ldam_protocol_is_the_released_selection(kind, ratio):
    y = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 300))
    choose, count = {
        "long_tailed": (long_tailed_indices, long_tailed_counts),
        "step": (step_indices, step_counts),
    }[kind]
    indices = choose(y, imbalance_ratio=ratio, protocol="ldam")
    assert np.array_equal(indices, released_selection(y, count(300, 10, ratio)))


def test_ldam_protocol_takes_none_for_zero_and_other_seeds():
    y = np.repeat([0, 1], 50)
    zero, none, one, state = (
        long_tailed_indices(y, imbalance_ratio=5, protocol="ldam", random_state=seed).tolist()
        for seed in (0, None, 1, np.random.RandomState(1))
    )
    assert zero == none
    assert one == state != zero


@pytest.mark.parametrize("protocol", ["random", "ldam"])
def test_subsets_of_a_seed_are_nested(protocol):
    y = np.repeat(np.arange(5), 200)
    options = {"protocol": protocol, "random_state": 0}
    mild = long_tailed_indices(y, imbalance_ratio=5, **options)
    strong = long_tailed_indices(y, imbalance_ratio=100, **options)
    step = step_indices(y, imbalance_ratio=100, **options)
    assert len(set(mild.tolist())) == len(mild)
    assert set(strong.tolist()) <= set(mild.tolist())
    assert set(strong[y[strong] == 4]) == set(step[y[step] == 4])


def test_random_protocol_keeps_the_order_of_the_rows():
    y = np.random.default_rng(0).integers(0, 3, 300)
    indices = long_tailed_indices(y, imbalance_ratio=10, n_max=80, random_state=0)
    assert (np.diff(indices) > 0).all()
    assert np.bincount(y[indices]).tolist() == [80, 25, 8]


@pytest.mark.parametrize("protocol", ["random", "ldam"])
@pytest.mark.parametrize("random_state", [None, 0])
def test_global_random_state_is_left_alone(protocol, random_state):
    before = np.random.get_state()[1].tolist()
    long_tailed_indices(
        np.repeat([0, 1], 50), imbalance_ratio=5, protocol=protocol, random_state=random_state
    )
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize("make", [np.random.default_rng, np.random.RandomState, int])
def test_random_state_decides_the_rows(make):
    y = np.repeat([0, 1], 500)
    first, same, other = (
        long_tailed_indices(y, imbalance_ratio=5, random_state=make(seed)).tolist()
        for seed in (7, 7, 8)
    )
    assert first == same != other


def test_every_row_of_a_class_can_be_drawn():
    y = np.repeat([0, 1], 10)
    drawn = [
        long_tailed_indices(y, imbalance_ratio=10, random_state=seed)[-1] for seed in range(200)
    ]
    assert set(drawn) == set(range(10, 20))


def test_class_order_sets_head_and_tail():
    y = np.array(["ash", "elm", "oak"] * 100)
    X = np.arange(300).reshape(-1, 1)
    X_s, y_s = make_long_tailed(X, y, imbalance_ratio=100, class_order=["oak", "ash", "elm"])
    assert dict(zip(*np.unique(y_s, return_counts=True), strict=True)) == {
        "ash": 10,
        "elm": 1,
        "oak": 100,
    }
    assert (y[X_s.ravel()] == y_s).all()


def test_n_max_defaults_to_the_head_of_the_class_order():
    y = np.repeat([0, 1], [20, 50])
    indices = step_indices(y, imbalance_ratio=10, class_order=[1, 0])
    assert np.bincount(y[indices]).tolist() == [5, 50]


def test_empty_class_is_named_by_its_label_and_n_max_is_not_a_way_out():
    y = np.repeat(["a", "b", "c"], 20)
    message = (
        "imbalance_ratio=100 with n_max=20 leaves class 'c' without rows (1 of 3 classes); pass "
        "imbalance_ratio=20 or less"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        long_tailed_indices(y, imbalance_ratio=100)
    with pytest.raises(ValueError, match=r"pass imbalance_ratio=5 or less, or n_max=10 or more$"):
        long_tailed_indices(y, imbalance_ratio=10, n_max=5)


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        (
            [100, 20, 30],
            {"imbalance_ratio": 4},
            "class 'b' has 20 rows, n_max=100 asks for 50; n_max=41 is the most that works, or "
            "give class_order from the most to the least frequent class",
        ),
        (
            [20, 20, 20],
            {"imbalance_ratio": 4, "n_max": 50},
            "class 'a' has 20 rows, n_max=50 asks for 50; n_max=20 is the most that works",
        ),
        (
            [100, 1, 30],
            {"imbalance_ratio": 50},
            "class 'b' has 1 rows, n_max=100 asks for 14; no n_max works",
        ),
    ],
)
def test_too_few_rows_are_an_error_with_the_largest_n_max(sizes, options, message):
    y = np.repeat(["a", "b", "c"], sizes)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        long_tailed_indices(y, **options)


@given(sizes=st.lists(st.integers(1, 60), min_size=2, max_size=5), ratio=st.floats(1, 20))
def test_the_largest_n_max_in_the_error_works_and_no_larger_one(sizes, ratio):
    y = np.repeat(np.arange(len(sizes)), sizes)
    with pytest.raises(ValueError, match=r"asks for|without rows") as caught:
        long_tailed_indices(y, imbalance_ratio=ratio, n_max=sizes[0] + 1)
    found = re.search(r"n_max=(\d+) is the most", str(caught.value))
    assume(found)
    most = int(found[1])
    assert len(long_tailed_indices(y, imbalance_ratio=ratio, n_max=most))
    with pytest.raises(ValueError, match="asks for"):
        long_tailed_indices(y, imbalance_ratio=ratio, n_max=most + 1)


@pytest.mark.parametrize(
    ("order", "fault"),
    [
        ([0, 1], "missing [2]"),
        ([0, 1, 5], "unknown [5], missing [2]"),
        ([0, 1, 2, 1], "repeated [1]"),
        (["0", "1", "2"], "unknown ['0', '1', '2'], missing [0, 1, 2]"),
    ],
)
def test_class_order_must_hold_each_label_once(order, fault):
    message = f"class_order must hold each label of y once; {fault}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        long_tailed_indices(np.repeat([0, 1, 2], 10), imbalance_ratio=2, class_order=order)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros(10, int), "y must have at least 2 classes, got [0]"),
        (np.zeros((10, 2), int), "y must be 1-D, got shape (10, 2)"),
        (np.repeat([0, 1, 2], 3), "X has 10 rows and y has 9 labels; they must be the same"),
        (np.linspace(0, 1, 10), "Unknown label type: continuous"),
    ],
)
def test_labels_must_be_classes(y, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_long_tailed(np.zeros((10, 2)), y, imbalance_ratio=1)


def test_protocol_must_be_known():
    with pytest.raises(ValueError, match=r"protocol must be one of \['random', 'ldam'\], got 'x'"):
        long_tailed_indices([0, 0, 1, 1], imbalance_ratio=2, protocol="x")
