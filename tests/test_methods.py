import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits

from imbmargin import LOSSES, METHODS, MaxMarginClassifier, make_classifier
from imbmargin.bbn import BBNClassifier
from imbmargin.meta import MetaWeightNetClassifier
from imbmargin.methods import (
    AFTER,
    CLASSES,
    SOURCES,
    TABLE1,
    paper_margins,
    published_error,
    trained_as,
)
from imbmargin.posthoc import LogitAdjustment, NearestClassMean, TauNormalization
from imbmargin.pretraining import RotationPretrainer
from imbmargin.two_stage import (
    ClassifierRetraining,
    LearnableWeightScaling,
    MetaSampledRetraining,
)

MARGINS = {
    "cifar10_lt_100": (0.6, 1.5),
    "cifar10_lt_10": (0.7, 1.2),
    "cifar10_step_100": (0.6, 1.3),
    "cifar10_step_10": (2.1, 1.0),
    "cifar100_lt_100": (1.2, 1.3),
    "cifar100_lt_10": (1.5, 1.4),
    "cifar100_step_100": (1.8, 1.8),
    "cifar100_step_10": (2.4, 1.1),
}
ERRORS = {
    "MM-DRW": [21.98, 11.44, 22.83, 11.48, 57.14, 40.63, 54.57, 40.28],
    "LDAM-DRW": [22.97, 11.84, 23.08, 12.19, 57.96, 41.29, 54.64, 40.54],
}


ON_IMAGES = [name for name in METHODS if "init_backbone" in METHODS[name]]
ON_TABLES = [name for name in METHODS if name not in {*ON_IMAGES, *AFTER}]


def check_fitted(clf, name, X, y):
    assert np.isfinite(clf.history_[:, "train_loss"]).all()
    # Networks that have seen mixed rows only are less certain of the plain ones, and branches for
    # rare classes err on the frequent one.
    lenient = "mixing" in METHODS[name] or name in CLASSES
    assert clf.score(X, y) > (0.75 if lenient else 0.9)
    for key, value in METHODS[name].items():
        assert repr(clf.get_params()[key]) == repr(value)
    cosine = getattr(clf.module_.head, "normalized", False)
    assert cosine == LOSSES[clf.loss].normalized_logits


@pytest.mark.parametrize("name", ON_TABLES)
def test_every_method_trains_and_predicts(name, table):
    X, y = table
    check_fitted(make_classifier(name, max_epochs=30, random_state=0).fit(X, y), name, X, y)


@pytest.mark.parametrize("name", ON_IMAGES)
def test_methods_for_images_train_and_predict(name):
    X, y = load_digits(n_class=3, return_X_y=True)
    settings = {"image_shape": (1, 8, 8), "module": "resnet20", "batch_size": 32}
    clf = make_classifier(name, **settings, max_epochs=10, random_state=0).fit(X, y)
    check_fitted(clf, name, X, y)
    assert len(clf.pretraining_history_) == 10


@pytest.mark.parametrize("name", AFTER)
def test_methods_that_go_on_after_training(name, table):
    X, y = table
    clf = make_classifier(name, max_epochs=30, random_state=0)
    plain = clone(clf.estimator).fit(X, y)
    clf.fit(X, y)
    assert clf.score(X, y) > 0.8
    assert not np.allclose(clf.predict_proba(X), plain.predict_proba(X))
    if hasattr(clf, "net_"):
        assert clf.net_.max_epochs == 4


@pytest.mark.cuda
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_predicts_on_a_cuda_device(name):
    X, y = (part[:200] for part in load_digits(return_X_y=True))
    images = (X.reshape(-1, 1, 8, 8) * 15).astype(np.uint8)
    clf = make_classifier(name, max_epochs=2, device="cuda", random_state=0).fit(images, y)
    assert np.isfinite(clf.predict_proba(images)).all()


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_is_trained_as(name):
    other = trained_as(name)
    assert other not in AFTER
    assert METHODS[other] == METHODS[name]
    assert (other == name) == (name not in AFTER)
    assert CLASSES.get(other) is CLASSES.get(name)


def test_a_classifier_gets_a_pretrainer_of_its_own():
    first, second = (make_classifier("LDAM-DRW+SSP").init_backbone for _ in range(2))
    assert first is not second
    assert first is not METHODS["LDAM-DRW+SSP"]["init_backbone"]


def test_the_deferred_methods_begin_at_epoch_160_of_200():
    deferred = [name for name in METHODS if name.partition("+")[0].endswith(("-DRW", "-DRS"))]
    assert len(set(deferred) & set(TABLE1)) == 7
    for name in METHODS:
        start = METHODS[name].get("drw_epoch", METHODS[name].get("drs_epoch"))
        assert (start == 160 / 200) == (name in deferred)


def test_every_method_has_a_source_and_a_row_of_the_table():
    assert list(SOURCES) == list(METHODS)
    assert len(TABLE1) == 14
    for name in TABLE1:
        assert published_error(name, "cifar10_lt_100") > 20


def test_arguments_come_before_those_of_the_method():
    clf = make_classifier("MM-DRW", setting="cifar10_step_10", beta=2.0, drw_epoch=3, lr=0.5)
    assert (clf.delta_neg, clf.beta, clf.drw_epoch, clf.lr) == (2.1, 2.0, 3, 0.5)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"name must be one of \['ERM', .*got 'MMX'"):
        make_classifier("MMX")
    for function in (paper_margins, lambda s: published_error("ERM", s)):
        with pytest.raises(ValueError, match=r"setting must be one of \['cifar10_lt_100'.*'mnist'"):
            function("mnist")
    with pytest.raises(ValueError, match="name must be one of"):
        published_error("MMX", "cifar10_lt_100")


@pytest.mark.parametrize("setting", MARGINS)
def test_margins_of_the_paper(setting):
    delta_neg, beta = MARGINS[setting]
    assert paper_margins(setting) == {"delta_neg": delta_neg, "beta": beta}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_the_paper(name):
    assert [published_error(name, setting) for setting in MARGINS] == ERRORS[name]


def test_an_empty_cell_was_not_published():
    assert published_error("HG-DRS", "cifar100_lt_100") is None


DRW = {"class_weight": "effective_number", "drw_epoch": 0.8}
DRS = {"resample": "effective_number", "drs_epoch": 0.8}
ERM = {"loss": "cross_entropy"}
# By hand from the papers and, where these are silent, from their code.
OF_THE_PAPERS = {
    "ERM": ERM,
    "Focal": {"loss": "focal"},
    "LDAM": {"loss": "ldam"},
    "MM": {"loss": "mm"},
    "CB-RS": ERM | {"resample": "effective_number"},
    "CB-RW": ERM | {"class_weight": "effective_number"},
    "CB-Focal": {"loss": "focal", "class_weight": "effective_number"},
    "HG-DRS": {"loss": "hinge", **DRS},
    "LDAM-HG-DRS": {"loss": "ldam_hinge", **DRS},
    "M-DRW": {"loss": "uniform_margin", **DRW},
    "LDAM-DRW": {"loss": "ldam", **DRW},
    "LDAM-DRW+SSP": {"loss": "ldam", **DRW, "init_backbone": RotationPretrainer()},
    "MM-DRW": {"loss": "mm", **DRW},
    "MM-LDAM-DRW": {"loss": "mm_ldam", **DRW},
    "BSCE": {"loss": "balanced_softmax"},
    "LA": {"loss": "logit_adjusted"},
    "VS": {"loss": "vs", "criterion__gamma": 0.15, "criterion__tau": 1.25},
    "CDT": {"loss": "vs", "criterion__gamma": 0.2, "criterion__tau": 0.0},
    "IB": {"loss": "influence_balanced", "loss_epoch": 0.5, "lr_schedule": "half_step"},
    "L-Softmax": {"loss": "large_margin_softmax"},
    "mixup": ERM | {"mixing": "mixup"},
    "mixup-DRW": ERM | {"mixing": "mixup"} | DRW,
    "remix": ERM | {"mixing": "remix"},
    "remix-DRW": ERM | {"mixing": "remix"} | DRW,
    "MM-DRW+mixup": {"loss": "mm", "mixing": "mixup", **DRW},
    "MM-DRW+remix": {"loss": "mm", "mixing": "remix", **DRW},
    "MM-LDAM-DRW+mixup": {"loss": "mm_ldam", "mixing": "mixup", **DRW},
    "MM-LDAM-DRW+remix": {"loss": "mm_ldam", "mixing": "remix", **DRW},
}


@pytest.mark.parametrize("name", OF_THE_PAPERS)
def test_a_method_is_what_its_paper_says(name):
    assert repr(make_classifier(name)) == repr(MaxMarginClassifier(**OF_THE_PAPERS[name]))


AROUND = {
    "LA-post-hoc": LogitAdjustment(MaxMarginClassifier(**ERM)),
    "tau-norm": TauNormalization(MaxMarginClassifier(**ERM)),
    "NCM": NearestClassMean(MaxMarginClassifier(**ERM)),
    "cRT": ClassifierRetraining(MaxMarginClassifier(**ERM)),
    "LWS": LearnableWeightScaling(MaxMarginClassifier(**ERM)),
    "MM-cRT": ClassifierRetraining(MaxMarginClassifier()),
    "MM-LA": LogitAdjustment(MaxMarginClassifier()),
    "BALMS": MetaSampledRetraining(MaxMarginClassifier(loss="balanced_softmax")),
    "BBN": BBNClassifier(lr_schedule="early_step"),
    "MW-Net": MetaWeightNetClassifier(lr_schedule="tenth_step"),
}


@pytest.mark.parametrize("name", AROUND)
def test_the_others_are_these_classes_with_their_defaults(name):
    made, expected = make_classifier(name), AROUND[name]
    if "max_epochs" in made.get_params(deep=False):
        expected.set_params(max_epochs=made.max_epochs)
    assert repr(made) == repr(expected)
    if name in ("cRT", "LWS", "MM-cRT", "BALMS"):
        assert make_classifier(name, max_epochs=200).max_epochs == 30


def test_every_method_is_held_to_something():
    assert {*OF_THE_PAPERS, *AROUND} == set(METHODS)
