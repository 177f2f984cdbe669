import numpy as np
import pytest
from scipy.stats import friedmanchisquare, wilcoxon

from imbmargin.benchmark.ranks import (
    against_control,
    cliques,
    critical_difference,
    friedman,
    holm,
    mean_ranks,
)

# AUC of C4.5 and three variants on 14 data sets: Table 6 of Demšar, JMLR 7 (2006). The two that
# are printed as 0.975 have ranks 2 and 3 there, so that the first of them is a little larger.
AUC = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975],
        [0.957, 0.978, 0.946, 0.970],
    ]
)


def test_mean_ranks_are_the_published_ones():
    np.testing.assert_allclose(mean_ranks(AUC), [3.143, 2.000, 2.893, 1.964], atol=5e-4)
    np.testing.assert_allclose(mean_ranks(-AUC, lower_is_better=True), mean_ranks(AUC))


def test_ranks_of_a_hand_made_example():
    scores = np.array([[3.0, 3.0, 1.0], [1.0, 2.0, 3.0]])
    assert mean_ranks(scores).tolist() == [(1.5 + 3) / 2, (1.5 + 2) / 2, (3 + 1) / 2]


def test_friedman_is_scipys_and_knows_equal_scores():
    assert friedman(AUC) == friedmanchisquare(*AUC.T).pvalue < 0.05
    assert friedman(np.ones((5, 3))) == 1.0


# q at 0.05 for 2 to 10 classifiers: Table 5 (a) of Demšar, JMLR 7 (2006).
@pytest.mark.parametrize(
    ("n_classifiers", "q"),
    list(enumerate([1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164], start=2)),
)
def test_the_critical_difference_has_the_published_quantiles(n_classifiers, q):
    expected = q * np.sqrt(n_classifiers * (n_classifiers + 1) / (6 * 14))
    assert critical_difference(n_classifiers, 14) == pytest.approx(expected, rel=5e-4)


def test_groups_are_the_largest_ones_and_need_two():
    ranks = np.array([4.0, 1.0, 2.0, 2.9, 9.0])
    assert cliques(ranks, 2.0) == [(1.0, 2.9), (2.0, 4.0)]
    assert cliques(ranks, 0.5) == []
    assert cliques(ranks, 10.0) == [(1.0, 9.0)]


def test_holm_never_falls_and_never_exceeds_one():
    np.testing.assert_allclose(holm(np.array([0.04, 0.001, 0.03, 0.9])), [0.09, 0.004, 0.09, 0.9])
    assert holm(np.array([0.8, 0.7])).tolist() == [1.0, 1.0]


def test_the_tests_against_a_control_are_scipys_adjusted():
    p = against_control(AUC, control=0)
    raw = [wilcoxon(AUC[:, i] - AUC[:, 0], zero_method="pratt").pvalue for i in (1, 2, 3)]
    assert np.isnan(p[0])
    np.testing.assert_allclose(p[1:], holm(np.array(raw)))
    assert against_control(np.ones((6, 2)), control=1)[0] == 1.0
