"""The methods by name: constructor arguments, and what is done after training."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import cache, partial
from importlib import resources
from typing import Any

from sklearn.base import clone

from imbmargin.bbn import BBNClassifier
from imbmargin.estimator import MaxMarginClassifier
from imbmargin.meta import MetaWeightNetClassifier
from imbmargin.posthoc import LogitAdjustment, NearestClassMean, TauNormalization
from imbmargin.pretraining import RotationPretrainer
from imbmargin.two_stage import (
    ClassifierRetraining,
    LearnableWeightScaling,
    MetaSampledRetraining,
)

__all__ = [
    "AFTER",
    "CLASSES",
    "METHODS",
    "SOURCES",
    "TABLE1",
    "make_classifier",
    "paper_grid",
    "paper_margins",
    "paper_settings",
    "published_error",
    "setting_name",
    "trained_as",
]

# The paper's 200 epochs defer to epoch 160; as a fraction it holds for every length.
_DEFERRED = 0.8
_DRW = {"class_weight": "effective_number", "drw_epoch": _DEFERRED}

METHODS: dict[str, dict[str, Any]] = {
    "ERM": {"loss": "cross_entropy"},
    "Focal": {"loss": "focal"},
    "LDAM": {"loss": "ldam"},
    "MM": {"loss": "mm"},
    "CB-RS": {"loss": "cross_entropy", "resample": "effective_number"},
    "CB-RW": {"loss": "cross_entropy", "class_weight": "effective_number"},
    "CB-Focal": {"loss": "focal", "class_weight": "effective_number"},
    "HG-DRS": {"loss": "hinge", "resample": "effective_number", "drs_epoch": _DEFERRED},
    "LDAM-HG-DRS": {"loss": "ldam_hinge", "resample": "effective_number", "drs_epoch": _DEFERRED},
    "M-DRW": {"loss": "uniform_margin", **_DRW},
    "LDAM-DRW": {"loss": "ldam", **_DRW},
    "LDAM-DRW+SSP": {"loss": "ldam", **_DRW, "init_backbone": RotationPretrainer()},
    "MM-DRW": {"loss": "mm", **_DRW},
    "MM-LDAM-DRW": {"loss": "mm_ldam", **_DRW},
    "BSCE": {"loss": "balanced_softmax"},
    "LA": {"loss": "logit_adjusted"},
    "VS": {"loss": "vs", "criterion__gamma": 0.15, "criterion__tau": 1.25},
    "CDT": {"loss": "vs", "criterion__gamma": 0.2, "criterion__tau": 0.0},
    # It is for small steps: the released code lets the rate fall when the loss begins.
    "IB": {"loss": "influence_balanced", "loss_epoch": 0.5, "lr_schedule": "half_step"},
    "L-Softmax": {"loss": "large_margin_softmax"},
    "BBN": {"loss": "cross_entropy", "lr_schedule": "early_step"},
    # A hundredth of the rate makes the virtual step, and so the slopes, too small to learn from.
    "MW-Net": {"loss": "cross_entropy", "lr_schedule": "tenth_step"},
    "mixup": {"loss": "cross_entropy", "mixing": "mixup"},
    "mixup-DRW": {"loss": "cross_entropy", "mixing": "mixup", **_DRW},
    "remix": {"loss": "cross_entropy", "mixing": "remix"},
    "remix-DRW": {"loss": "cross_entropy", "mixing": "remix", **_DRW},
    "MM-DRW+mixup": {"loss": "mm", "mixing": "mixup", **_DRW},
    "MM-DRW+remix": {"loss": "mm", "mixing": "remix", **_DRW},
    "MM-LDAM-DRW+mixup": {"loss": "mm_ldam", "mixing": "mixup", **_DRW},
    "MM-LDAM-DRW+remix": {"loss": "mm_ldam", "mixing": "remix", **_DRW},
    "LA-post-hoc": {"loss": "cross_entropy"},
    "tau-norm": {"loss": "cross_entropy"},
    "NCM": {"loss": "cross_entropy"},
    "cRT": {"loss": "cross_entropy"},
    "LWS": {"loss": "cross_entropy"},
    "MM-cRT": {"loss": "mm"},
    "MM-LA": {"loss": "mm"},
    "BALMS": {"loss": "balanced_softmax"},
}
"""Name in the papers -> arguments of `MaxMarginClassifier`.

The first 14 are the rows of Table 1 of the MM paper. The head is the one that the loss asks for:
normalised (cosine) for the margin and hinge losses, linear for the others, without a bias for
L-Softmax. ``delta_neg`` and ``beta`` are the estimator's defaults, those of CIFAR-10 long-tailed
100; `paper_margins` has the other settings.
"""


CLASSES: dict[str, type[MaxMarginClassifier]] = {
    "BBN": BBNClassifier,
    "MW-Net": MetaWeightNetClassifier,
}
"""Name -> class, of methods whose training step is their own."""


def _two_stage(kind: Callable[..., Any], classifier: MaxMarginClassifier) -> Any:
    # 30 epochs after 200, in proportion.
    epochs = max(1, round(0.15 * classifier.max_epochs))
    return kind(classifier, max_epochs=epochs, random_state=classifier.random_state)


AFTER: dict[str, Callable[[MaxMarginClassifier], Any]] = {
    "LA-post-hoc": LogitAdjustment,
    "tau-norm": TauNormalization,
    "NCM": NearestClassMean,
    "cRT": partial(_two_stage, ClassifierRetraining),
    "LWS": partial(_two_stage, LearnableWeightScaling),
    "MM-cRT": partial(_two_stage, ClassifierRetraining),
    "MM-LA": LogitAdjustment,
    "BALMS": partial(_two_stage, MetaSampledRetraining),
}
"""Name -> what is put around the classifier, of methods that do something after training."""

SOURCES: dict[str, str] = {
    "ERM": "cross-entropy",
    "Focal": "Lin et al., ICCV 2017; softmax form, gamma 1",
    "LDAM": "Cao et al., NeurIPS 2019",
    "MM": "Kang et al., ICIP 2021; scale unpublished",
    "CB-RS": "Cui et al., CVPR 2019; Cao et al., NeurIPS 2019",
    "CB-RW": "Cui et al., CVPR 2019",
    "CB-Focal": "Cui et al., CVPR 2019; softmax form, gamma 1",
    "HG-DRS": "Cao et al., NeurIPS 2019; margin and head unpublished",
    "LDAM-HG-DRS": "Cao et al., NeurIPS 2019; margin and head unpublished",
    "M-DRW": "Cao et al., NeurIPS 2019; margin unpublished",
    "LDAM-DRW": "Cao et al., NeurIPS 2019",
    "LDAM-DRW+SSP": "Yang and Xu, NeurIPS 2020",
    "MM-DRW": "Kang et al., ICIP 2021; scale unpublished",
    "MM-LDAM-DRW": "Kang et al., ICIP 2021; scale unpublished",
    "BSCE": "Ren et al., NeurIPS 2020",
    "LA": "Menon et al., ICLR 2021; tau 1",
    "VS": "Kini et al., NeurIPS 2021; gamma and tau of CIFAR-10 long-tailed",
    "CDT": "Ye et al., 2020; gamma 0.2",
    "IB": "Park et al., ICCV 2021; alpha 1000, after half of the epochs",
    "L-Softmax": "Liu et al., ICML 2016; m 2",
    "BBN": "Zhou et al., CVPR 2020; plain momentum, and warm-up as the others",
    "MW-Net": "Shu et al., NeurIPS 2019; meta set from the training data",
    "mixup": "Zhang et al., ICLR 2018; alpha 1",
    "mixup-DRW": "Chou et al., ECCV Workshops 2020; deferred as the others",
    "remix": "Chou et al., ECCV Workshops 2020; kappa 3, tau 0.5",
    "remix-DRW": "Chou et al., ECCV Workshops 2020; deferred as the others",
    "MM-DRW+mixup": "MM-DRW and mixup together",
    "MM-DRW+remix": "MM-DRW and remix together",
    "MM-LDAM-DRW+mixup": "MM-LDAM-DRW and mixup together",
    "MM-LDAM-DRW+remix": "MM-LDAM-DRW and remix together",
    "LA-post-hoc": "Menon et al., ICLR 2021; tau 1",
    "tau-norm": "Kang B. et al., ICLR 2020; tau 1",
    "NCM": "Kang B. et al., ICLR 2020",
    "cRT": "Kang B. et al., ICLR 2020; 30 of 200 epochs more",
    "LWS": "Kang B. et al., ICLR 2020; 30 of 200 epochs more",
    "MM-cRT": "MM and cRT together",
    "MM-LA": "MM and post-hoc logit adjustment together",
    "BALMS": "Ren et al., NeurIPS 2020; 30 of 200 epochs more",
}
"""Name -> paper, and what of the method is a choice of ours or the value of a parameter."""

TABLE1 = (
    *("ERM", "Focal", "LDAM", "MM", "CB-RS", "CB-RW", "CB-Focal", "HG-DRS", "LDAM-HG-DRS"),
    *("M-DRW", "LDAM-DRW", "LDAM-DRW+SSP", "MM-DRW", "MM-LDAM-DRW"),
)
"""The rows of Table 1 of the MM paper."""


def make_classifier(name: str, *, setting: str | None = None, **overrides: Any) -> Any:
    """Make the classifier of a method by its name in the papers.

    Parameters
    ----------
    name : str
        A key of `METHODS`.
    setting : str, default=None
        A setting of the paper, such as "cifar100_step_10": the MM methods then take its
        ``delta_neg`` and ``beta``. By default those of "cifar10_lt_100".
    **overrides
        Arguments of `MaxMarginClassifier` (or of the class in `CLASSES`), before those of the
        method. What is put around it (`AFTER`) gets none: set its own with ``set_params``.

    Returns
    -------
    classifier : MaxMarginClassifier, or a meta-estimator around one (see `AFTER`)
        Not fitted.

    Raises
    ------
    ValueError
        If the method or the setting is unknown.

    Examples
    --------
    >>> from imbmargin import make_classifier
    >>> clf = make_classifier("MM-LDAM-DRW", max_epochs=200)
    >>> clf.loss, clf.drw_epoch
    ('mm_ldam', 0.8)
    >>> make_classifier("MM-DRW", setting="cifar100_lt_100").delta_neg
    1.2
    """
    if name not in METHODS:
        raise ValueError(f"name must be one of {list(METHODS)}, got {name!r}")
    margins = {} if setting is None else paper_margins(setting)
    own = {key: clone(value, safe=False) for key, value in METHODS[name].items()}
    make = CLASSES.get(name, MaxMarginClassifier)
    classifier = make(**{**own, **margins, **overrides})
    return AFTER[name](classifier) if name in AFTER else classifier


def trained_as(name: str) -> str:
    """Return the method whose training a method begins with.

    Parameters
    ----------
    name : str
        A key of `METHODS`.

    Returns
    -------
    method : str
        For those of `AFTER` the method that trains the same network and does nothing after it,
        otherwise ``name``.

    Examples
    --------
    >>> from imbmargin.methods import trained_as
    >>> trained_as("cRT"), trained_as("BALMS"), trained_as("LDAM-DRW")
    ('ERM', 'BSCE', 'LDAM-DRW')
    """
    plain = (other for other in METHODS if other not in AFTER and other not in CLASSES)
    same = (other for other in plain if METHODS[other] == METHODS[name])
    return next(same, name) if name in AFTER else name


def paper_margins(setting: str) -> dict[str, float]:
    """Return delta_neg and beta of a setting of the paper (Tables 2 and 3, best row of MM-DRW).

    They were chosen on the test set. For MM and MM-LDAM-DRW none were published.

    Parameters
    ----------
    setting : str
        Data set, "lt" or "step", and imbalance ratio, such as "cifar10_lt_100".

    Returns
    -------
    margins : dict
        ``delta_neg`` and ``beta``.

    Raises
    ------
    ValueError
        If the setting is not in the paper.

    Examples
    --------
    >>> from imbmargin.methods import paper_margins
    >>> paper_margins("cifar10_step_10")
    {'delta_neg': 2.1, 'beta': 1.0}
    """
    best = min(paper_grid(setting), key=lambda row: row["error"])
    return {"delta_neg": best["delta_neg"], "beta": best["beta"]}


def paper_grid(setting: str) -> list[dict[str, float]]:
    """Return what Tables 2 and 3 print for a setting: the errors of MM-DRW over beta and delta_neg.

    Parameters
    ----------
    setting : str
        As in `paper_margins`.

    Returns
    -------
    rows : list of dict
        ``delta_neg``, ``beta`` and ``error`` (%, best epoch of one run).

    Raises
    ------
    ValueError
        If the setting is not in the paper.

    Examples
    --------
    >>> from imbmargin.methods import paper_grid
    >>> [(row["beta"], row["error"]) for row in paper_grid("cifar10_lt_100")]
    [(1.4, 22.24), (1.5, 21.98), (1.6, 22.43)]
    """
    _check_setting(setting)
    return [
        {
            "delta_neg": float(row["delta_neg"]),
            "beta": float(row["beta"]),
            "error": float(row["top1_error"]),
        }
        for row in _table("mm_drw.csv")
        if setting_name(row["dataset"], row["imbalance"], float(row["ratio"])) == setting
    ]


def setting_name(dataset: str, imbalance: str, ratio: float) -> str:
    """Return the name of a setting, as `paper_margins` takes it; it need not be in the paper.

    Parameters
    ----------
    dataset : str
        Such as "cifar10".
    imbalance : str
        "long_tailed", which becomes "lt", or another word such as "step".
    ratio : float
        Imbalance ratio.

    Returns
    -------
    setting : str
        The three, joined.

    Examples
    --------
    >>> from imbmargin.methods import setting_name
    >>> setting_name("cifar10", "long_tailed", 100)
    'cifar10_lt_100'
    """
    kind = {"long_tailed": "lt"}.get(imbalance, imbalance)
    return f"{dataset}_{kind}_{ratio:g}"


def published_error(name: str, setting: str) -> float | None:
    """Return the error (%) that Table 1 prints for a method, or None for an empty cell.

    Parameters
    ----------
    name : str
        Name of the method in the table.
    setting : str
        As in `paper_margins`.

    Returns
    -------
    error : float or None
        Best epoch of one run, chosen on the test set.

    Raises
    ------
    ValueError
        If the method or the setting is not in the table.

    Examples
    --------
    >>> from imbmargin.methods import published_error
    >>> published_error("MM-LDAM-DRW", "cifar10_lt_100")
    21.37
    """
    rows = {row["method"]: row for row in _table("table1.csv")}
    if name not in rows:
        raise ValueError(f"name must be one of {list(rows)}, got {name!r}")
    _check_setting(setting)
    cell = rows[name][setting]
    return float(cell) if cell else None


def paper_settings() -> list[str]:
    """Return the settings of the paper's Table 1.

    Returns
    -------
    settings : list of str
        Names, as `paper_margins` takes them.

    Examples
    --------
    >>> from imbmargin.methods import paper_settings
    >>> paper_settings()[:2]
    ['cifar10_lt_100', 'cifar10_lt_10']
    """
    return [column for column in _table("table1.csv")[0] if column != "method"]


def _check_setting(setting: str) -> None:
    if setting not in paper_settings():
        raise ValueError(f"setting must be one of {paper_settings()}, got {setting!r}")


@cache
def _table(file: str) -> list[dict[str, str]]:
    text = resources.files("imbmargin").joinpath("published", file).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
