"""The batched grid search against scikit-learn's, candidate by candidate."""

import pickle
import platform
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import FitFailedWarning
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from torch import nn

from imbmargin import BatchedGridSearchCV, MaxMarginClassifier
from imbmargin._batched import train_together
from tests.searching import MARGINS, assert_same_results, both, classifier


class Normed(nn.Module):
    def __init__(self, in_features, num_classes):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(in_features, 16, bias=False), nn.BatchNorm1d(16), nn.Tanh()
        )
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.head(self.backbone(x))


@pytest.fixture(scope="module")
def small_table(table):
    """A table whose training parts of two folds have 97 rows: a rest of one in batches of 32."""
    X, y = table
    return X[:194], y[:194]


SGD = {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9}
CONFIGURATIONS = {
    "MM-DRW": ({"drw_epoch": 0.5}, MARGINS),
    "MM-LDAM-DRW": ({"loss": "mm_ldam", "drw_epoch": 2}, MARGINS),
    "LDAM-DRW": ({"loss": "ldam", "drw_epoch": 2}, {"lr": [1e-3, 1e-2]}),
    "cross-entropy": (
        {"loss": "cross_entropy"},
        {"lr": [1e-3, 1e-2], "optimizer__weight_decay": [0.0, 0.1]},
    ),
    "margins and rates": ({"drw_epoch": 2}, {"lr": [1e-3, 1e-2], **MARGINS}),
    "deferred sampling": ({"resample": "class_balanced", "drs_epoch": 2}, MARGINS),
    "seeds": ({"drw_epoch": 2}, {"random_state": [0, 1], "delta_neg": [0.4, 0.8]}),
    "seeds, deferred sampling": ({"drs_epoch": 2}, {"random_state": [0, 1, 2]}),
    "schedule": ({"lr_schedule": "cosine", **SGD}, {"lr": [0.1, 0.01], "beta": [1.0, 2.0]}),
    "momentum": ({**SGD}, {"optimizer__momentum": [0.5, 0.9], "optimizer__nesterov": [True]}),
    "focal": ({"loss": "focal"}, {"criterion__gamma": [0.5, 2.0], "lr": [1e-3, 1e-2]}),
    "hinge": ({"loss": "hinge"}, {"criterion__max_margin": [0.2, 0.5]}),
    "scale": ({"class_weight": "balanced"}, {"criterion__scale": [5.0, 30.0], **MARGINS}),
    "torch's loss": ({"loss": nn.CrossEntropyLoss, "drw_epoch": 2}, {"lr": [1e-3, 1e-2]}),
    "dropout": ({"module__dropout": 0.3}, MARGINS),
    "batch norm": ({"module": Normed, **SGD}, {"lr": [0.01, 0.02]}),
    "rates of parts": (
        {"optimizer__param_groups": [("head*", {"lr": 0.1})]},
        {"delta_neg": [0.4, 0.8], "optimizer__weight_decay": [0.0, 0.1]},
    ),
    "blocks": (
        {},
        [
            {"module__hidden_units": [(8,), (16,)], "beta": [1.0, 2.0]},
            {"drw_epoch": [1, 0.75], "delta_neg": [0.4, 0.8]},
            {"class_weight": [{0: 1, 1: 2, 2: 3}], "lr": [0.001, 0.01]},
        ],
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_scores_are_those_of_one_at_a_time(name, table):
    arguments, grid = CONFIGURATIONS[name]
    plain, batched = both(classifier(**arguments), grid, *table)
    assert_same_results(plain, batched)
    np.testing.assert_array_equal(plain.predict_proba(table[0]), batched.predict_proba(table[0]))
    assert repr(plain.best_estimator_) == repr(batched.best_estimator_)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "name", ["MM-DRW", "cross-entropy", "deferred sampling", "schedule", "batch norm"]
)
def test_scores_on_a_cuda_device(name, table):
    arguments, grid = CONFIGURATIONS[name]
    plain, batched = both(classifier(device="cuda", **arguments), grid, *table)
    assert_same_results(plain, batched, atol=1e-3)


def test_a_rest_of_one_row_joins_the_batch_before(small_table):
    assert_same_results(*both(classifier(batch_size=32), MARGINS, *small_table))


def test_all_rows_in_one_batch(table):
    assert_same_results(*both(classifier(batch_size=-1), MARGINS, *table))


EXACT = {
    "a loss that jumps": {"drw_epoch": 0.5},
    "label-aware": {"loss": "mm_ldam", "drw_epoch": 0.5},
    "sizes that fill no register": {"module__hidden_units": (10, 7), "module__head": "linear"},
    "weights of 0": {"class_weight": {0: 0, 1: 1, 2: 2}},
    "narrow, with several seeds": {"module__hidden_units": (8, 5)},
}


@pytest.mark.skipif(
    platform.machine() != "x86_64" or torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="other processors may round a batched product in another order",
)
@pytest.mark.parametrize("name", EXACT)
def test_weights_are_those_of_single_fits_bit_for_bit(name, table):
    """Many steps: a last bit that differs somewhere shows in the end."""
    estimator = classifier(max_epochs=20, batch_size=32, **EXACT[name])
    candidates = [{"delta_neg": d, "beta": b} for d in (0.3, 0.7) for b in (0.7, 1.5)]
    if name == "narrow, with several seeds":
        candidates = [{**params, "random_state": seed} for params in candidates for seed in (0, 1)]
    for alone, batched in zip(*fitted_both_ways(estimator, candidates, *table), strict=True):
        for weight, expected in zip(
            batched.module_.parameters(), alone.module_.parameters(), strict=True
        ):
            assert torch.equal(weight, expected)


def test_bfloat16_is_equal_up_to_rounding(table):
    estimator = classifier(precision="bfloat16", drw_epoch=2)
    assert_same_results(*both(estimator, MARGINS, *table), atol=1e-3)


def test_images_are_augmented_as_in_a_single_fit(images):
    X, y = images
    estimator = classifier(module="mlp", drw_epoch=0.5)
    assert_same_results(*both(estimator, MARGINS, X, y), atol=1e-4)


@pytest.mark.parametrize("form", ["DataFrame", "sparse", "list", "float64"])
def test_forms_of_x(form, table):
    X, y = table
    labels = np.array(["common", "rare", "rarest"])[y]
    columns = [f"column {i}" for i in range(8)]
    data = {
        "DataFrame": pd.DataFrame(X, columns=columns),
        "sparse": sparse.csr_matrix(X),
        "list": X.tolist(),
        "float64": X.astype(np.float64),
    }[form]
    target = pd.Series(labels) if form == "DataFrame" else labels
    plain, batched = both(classifier(), MARGINS, data, target)
    assert_same_results(plain, batched)
    assert batched.classes_.tolist() == ["common", "rare", "rarest"]
    assert batched.n_features_in_ == 8
    assert hasattr(batched, "feature_names_in_") == (form == "DataFrame")
    if form == "DataFrame":
        assert batched.feature_names_in_.tolist() == columns
    assert set(batched.predict(data)) <= set(labels)


def test_groups_reach_the_splitter(table):
    groups = np.arange(300) % 5
    plain, batched = both(
        classifier(), MARGINS, *table, fit_params={"groups": groups}, cv=GroupKFold(2)
    )
    assert_same_results(plain, batched)


def test_a_generator_of_splits_and_masks(table):
    splits = [(np.arange(300) % 3 != i, np.flatnonzero(np.arange(300) % 3 == i)) for i in (0, 1)]
    plain = GridSearchCV(classifier(), MARGINS, cv=splits).fit(*table)
    batched = BatchedGridSearchCV(classifier(), MARGINS, cv=(split for split in splits))
    assert_same_results(plain, batched.fit(*table))


def by_margin(results):
    return int(np.argmax(results["mean_test_accuracy"]))


def two_scores(estimator, X, y):
    assert isinstance(estimator, MaxMarginClassifier)
    assert len(X) == len(y)
    return {"accuracy": estimator.score(X, y), "loss": -estimator.history_[-1]["train_loss"]}


def one_score(estimator, X, y):
    return two_scores(estimator, X, y)["loss"]


SCORINGS = {
    "none": (None, True),
    "a name": ("balanced_accuracy", True),
    "a scorer": (make_scorer(accuracy_score), True),
    "a function": (one_score, True),
    "a function of several": (two_scores, "loss"),
    "names": (["accuracy", "neg_log_loss"], "neg_log_loss"),
    "a dict": ({"accuracy": "accuracy", "own": one_score}, "own"),
    "no refit": (("accuracy", "neg_log_loss"), False),
    "own choice": (("accuracy", "balanced_accuracy"), by_margin),
}


@pytest.mark.parametrize("name", SCORINGS)
def test_scoring_and_refit(name, table):
    scoring, refit = SCORINGS[name]
    plain, batched = both(classifier(), MARGINS, *table, scoring=scoring, refit=refit)
    assert plain.cv_results_.keys() == batched.cv_results_.keys()
    if name != "own choice":
        assert_same_results(plain, batched)
    assert type(plain.scorer_) is type(batched.scorer_)
    assert hasattr(batched, "best_score_") == hasattr(plain, "best_score_")
    assert hasattr(batched, "best_estimator_") == bool(refit)
    if refit:
        assert isinstance(batched.best_estimator_, MaxMarginClassifier)
        assert batched.refit_time_ > 0
    if refit and not callable(refit):
        assert batched.score(*table) == pytest.approx(plain.score(*table))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"scoring": ["accuracy", "recall_macro"]}, "For multi-metric scoring"),
        ({"scoring": "no_such_scorer"}, "scoring"),
        ({"error_score": "wrong"}, "error_score"),
        ({"cv": 1}, "k-fold"),
    ],
)
def test_wrong_arguments_are_the_errors_of_scikit_learn(arguments, error, table):
    with pytest.raises(ValueError, match=error):
        BatchedGridSearchCV(classifier(), MARGINS, **arguments).fit(*table)


def test_a_wrong_name_is_an_error(table):
    with pytest.raises(ValueError, match="Invalid parameter 'delta'"):
        BatchedGridSearchCV(classifier(), {"delta": [1, 2]}).fit(*table)


@pytest.mark.parametrize(
    ("grid", "epochs", "error"),
    [
        ({"delta_neg": [0.4, -1, 0.8]}, 8, "delta_neg must be at least 0"),
        ({"lr": [0.001, 1e6, 0.01]}, 8, "the training loss became"),
        ({"lr": [0.001, 1e39, 0.01]}, 1, "the weights are not finite any more"),
    ],
)
def test_a_candidate_that_fails_leaves_the_others_alone(grid, epochs, error, table):
    estimator = classifier(loss="mm" if "delta_neg" in grid else "cross_entropy", **SGD)
    # With one epoch of one batch, no loss shows what its step did.
    estimator.set_params(max_epochs=epochs, batch_size=-1 if epochs == 1 else 64)
    search = {}
    for kind in (GridSearchCV, BatchedGridSearchCV):
        with pytest.warns() as caught:
            search[kind] = kind(estimator, grid, cv=2, scoring="neg_log_loss").fit(*table)
        failed = [str(w.message) for w in caught if w.category is FitFailedWarning]
        assert len(failed) == 1
        assert error in failed[0]
        assert np.isnan(search[kind].cv_results_["mean_test_score"]).tolist() == [
            False,
            True,
            False,
        ]
    results = [found.cv_results_["mean_test_score"] for found in search.values()]
    np.testing.assert_allclose(*results, atol=1e-5)
    with pytest.raises((ValueError, FloatingPointError), match=error):
        BatchedGridSearchCV(estimator, grid, cv=2, error_score="raise").fit(*table)
    numeric = BatchedGridSearchCV(estimator, grid, cv=2, error_score=-9.0)
    with pytest.warns(FitFailedWarning):
        assert numeric.fit(*table).cv_results_["mean_test_score"][1] == -9


def fitted_both_ways(estimator, candidates, X, y):
    nets = [clone(estimator).set_params(**params) for params in candidates]
    return [clone(net).fit(X, y) for net in nets], train_together(nets, X, y)


CANDIDATES = [
    {"lr": lr, "delta_neg": delta_neg} for delta_neg in (0.4, 0.8) for lr in (0.001, 0.01)
]


@pytest.mark.parametrize("arguments", [{"optimizer": torch.optim.NAdam}, SGD, {}])
def test_a_batched_candidate_is_an_ordinary_classifier(arguments, table):
    X, y = table
    estimator = classifier(drw_epoch=2, lr_schedule="cosine", **arguments)
    for alone, batched in zip(*fitted_both_ways(estimator, CANDIDATES, X, y), strict=True):
        assert type(batched) is MaxMarginClassifier
        assert repr(batched) == repr(alone)
        assert batched.classes_.tolist() == alone.classes_.tolist()
        assert batched.class_counts_.tolist() == alone.class_counts_.tolist()
        assert len(batched.history_) == 4
        for row, expected in zip(batched.history_, alone.history_, strict=True):
            assert row.keys() == expected.keys()
            for name in ("epoch", "event_lr", "train_loss_best", "train_batch_count"):
                assert row[name] == expected[name]
            assert row["train_loss"] == pytest.approx(expected["train_loss"], abs=1e-5)
            losses = [batch["train_loss"] for batch in expected["batches"]]
            assert [b["train_loss"] for b in row["batches"]] == pytest.approx(losses, abs=1e-5)
        weights = alone.criterion_.class_weight
        torch.testing.assert_close(batched.criterion_.class_weight, weights)
        # It goes on where it stopped: rate, momentum and epochs.
        stored = pickle.loads(pickle.dumps(batched))
        for other in (batched, stored):
            other.partial_fit(X, y)
        alone.partial_fit(X, y)
        np.testing.assert_allclose(
            batched.decision_function(X), alone.decision_function(X), atol=1e-4
        )
        np.testing.assert_array_equal(stored.predict_proba(X), batched.predict_proba(X))
        assert len(batched.history_) == 8


def test_other_candidates_do_not_change_a_candidate(table):
    few, many = (
        fitted_both_ways(classifier(), [{"beta": b} for b in values], *table)[1][0]
        for values in ((1.0, 2.0), (1.0, 1.5, 3.0, 4.0))
    )
    np.testing.assert_allclose(
        few.decision_function(table[0]), many.decision_function(table[0]), atol=1e-5
    )


def test_without_a_random_state_candidates_share_a_fresh_seed(table):
    estimator = classifier(random_state=None)
    one, two = train_together([clone(estimator), clone(estimator).set_params(beta=2)], *table)
    assert one.seed_ == two.seed_
    assert one.random_state is None
    other = train_together([clone(estimator)], *table)[0]
    assert other.seed_ != one.seed_


def test_random_states_are_left_as_they_were(table):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    BatchedGridSearchCV(classifier(), {"random_state": [0, 1]}, cv=2).fit(*table)
    assert torch.equal(before, torch.get_rng_state())


def test_a_numpy_random_state_gives_all_candidates_its_seed(table):
    estimator = classifier(random_state=np.random.RandomState(5))
    assert_same_results(*both(estimator, {"delta_neg": [0.4, 0.8]}, *table))


def test_the_search_is_an_estimator(table):
    search = BatchedGridSearchCV(classifier(), MARGINS, cv=2, scoring="balanced_accuracy")
    assert repr(search).startswith("BatchedGridSearchCV(cv=2")
    assert search.get_params().keys() == GridSearchCV(classifier(), MARGINS).get_params().keys()
    assert clone(search).fit(*table).best_params_ == search.fit(*table).best_params_
    loaded = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(loaded.predict_proba(table[0]), search.predict_proba(table[0]))
    scores = cross_val_score(search, *table, cv=2, scoring="balanced_accuracy")
    assert scores.min() > 0.5
    assert search.set_params(estimator__beta=3).estimator.beta == 3


def test_batches_can_be_trained_in_other_processes(table, monkeypatch):
    """Workers take a second or more to start: here only what they would be sent is looked at."""
    asked = []

    class Jobs:
        def __init__(self, **kwargs):
            asked.append(kwargs)

        def __call__(self, tasks):
            for task, arguments, _ in tasks:
                outcome = task.function(*pickle.loads(pickle.dumps(arguments)))
                yield pickle.loads(pickle.dumps(outcome))

    arguments = {"cv": 2, "scoring": "neg_log_loss", "n_jobs": 2, "pre_dispatch": 3}
    plain = GridSearchCV(classifier(), MARGINS, **{**arguments, "n_jobs": 1}).fit(*table)
    monkeypatch.setattr("imbmargin.search.Parallel", Jobs)
    batched = BatchedGridSearchCV(classifier(), MARGINS, **arguments).fit(*table)
    assert_same_results(plain, batched)
    assert asked == [{"n_jobs": 2, "pre_dispatch": 3}]


def test_workers_that_break_down_are_no_fault_of_a_candidate(table, monkeypatch):
    class Broken:
        def __init__(self, **_):
            pass

        def __call__(self, tasks):
            raise OSError("no more processes")

    monkeypatch.setattr("imbmargin.search.Parallel", Broken)
    with pytest.warns(UserWarning, match="one at a time: OSError: no more processes"):
        search = BatchedGridSearchCV(classifier(max_epochs=1), MARGINS, cv=2).fit(*table)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_times_are_shares_of_a_batch(table):
    search = BatchedGridSearchCV(classifier(), MARGINS, cv=2).fit(*table)
    times = search.cv_results_["mean_fit_time"]
    assert (times > 0).all()
    assert len(set(times)) == 1


def test_many_candidates_are_several_batches(table):
    grid = {"delta_neg": np.linspace(0.1, 1, 35)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = BatchedGridSearchCV(classifier(max_epochs=1), grid, cv=2).fit(*table)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_verbose_counts_the_fits(table, capsys):
    BatchedGridSearchCV(classifier(verbose=1), MARGINS, cv=2, verbose=1, refit=False).fit(*table)
    assert capsys.readouterr().out == "Fitting 2 folds for each of 4 candidates, totalling 8 fits\n"
