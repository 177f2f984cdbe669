"""What the figures show, and that they stay readable from 2 classes to hundreds."""

import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from imbmargin import MaxMarginClassifier, _figure, plotting
from imbmargin.data.imbalance import long_tailed_counts
from imbmargin.metrics import per_class_error, sample_margins
from imbmargin.plotting import (
    ClassDistributionDisplay,
    MarginDisplay,
    PerClassErrorDisplay,
    TrainingCurvesDisplay,
)
from imbmargin.posthoc import LogitAdjustment

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
METHODS = ["ERM", "Focal", "LDAM", "MM", "CB-RS", "CB-RW", "LDAM-HG-DRS", "MM-LDAM-DRW"]
HISTORY = [
    {"epoch": e + 1, "train_loss": 2 - e / 10, "valid_loss": 2.5, "valid_balanced_accuracy": e / 10}
    for e in range(10)
]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def errors(n_classes, n_methods):
    rng = np.random.default_rng(0)
    return {name: rng.random(n_classes) for name in METHODS[:n_methods]}


def error_display(n_classes, n_methods, labels=None):
    counts = long_tailed_counts(5000, n_classes, 100)
    return PerClassErrorDisplay(errors(n_classes, n_methods), counts, labels).plot()


def count_display(n_classes, n_splits, labels=None):
    counts = long_tailed_counts(5000, n_classes, 100)
    splits = {"train": counts, "validation": counts // 5, "test": np.full(n_classes, 100)}
    chosen = dict(list(splits.items())[:n_splits])
    return ClassDistributionDisplay(chosen, labels).plot()


def margin_display(n_groups):
    rng = np.random.default_rng(0)
    return MarginDisplay(
        {f"{i} to {i + 9} rows": rng.normal(size=50) for i in range(n_groups)}
    ).plot()


FIGURES = {
    "errors, 2 classes": lambda: error_display(2, 3, ["fine", "fraud"]),
    "errors, 10 classes": lambda: error_display(10, 3, CIFAR),
    "errors, 10 classes, 8 methods": lambda: error_display(10, 8, CIFAR),
    "errors, 10 numbers": lambda: error_display(10, 2),
    "errors, 24 long names": lambda: error_display(
        24, 2, [f"a long class name {i}" for i in range(24)]
    ),
    "errors, 100 classes": lambda: error_display(100, 3),
    "errors, 1000 classes": lambda: error_display(1000, 8),
    "counts, 2 classes": lambda: count_display(2, 1),
    "counts, 10 classes": lambda: count_display(10, 1, CIFAR),
    "counts, 3 splits": lambda: count_display(10, 3, CIFAR),
    "counts, 100 classes": lambda: count_display(100, 1),
    "counts, 100 classes, 3 splits": lambda: count_display(100, 3),
    "margins, 2 groups": lambda: margin_display(2),
    "margins, 4 groups": lambda: margin_display(4),
    "curves": lambda: TrainingCurvesDisplay(HISTORY, drw_epoch=8).plot(),
    "curves, training only": lambda: TrainingCurvesDisplay([{"train_loss": 1.0}]).plot(),
}


def shown_ticks(axis):
    if not axis.get_visible() or not axis.get_tick_params().get("labelbottom", True):
        return []
    low, high = sorted(axis.get_view_interval())
    labels = [tick.label1 for tick in axis.get_major_ticks()]
    ticks = zip(axis.get_majorticklocs(), labels, strict=True)
    shown = [label for place, label in ticks if low <= place <= high and label.get_visible()]
    return [label for label in shown if label.get_text()]


def text_boxes(ax, renderer):
    """Boxes of an axes' own text; ticks that are turned are left out, since their boxes overlap."""
    texts = [ax.title, ax.xaxis.label, ax.yaxis.label, *shown_ticks(ax.yaxis)]
    texts += [tick for tick in shown_ticks(ax.xaxis) if not tick.get_rotation()]
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
    return boxes + ([ax.get_legend().get_window_extent(renderer)] if ax.get_legend() else [])


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_text_neither_overlaps_nor_leaves_the_figure(draw):
    figure = draw().figure_
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    boxes = [box for ax in figure.axes for box in text_boxes(ax, renderer)]
    for i, box in enumerate(boxes):
        assert not any(box.shrunk(0.95, 0.9).overlaps(other) for other in boxes[:i])
    turned = [tick for ax in figure.axes for tick in shown_ticks(ax.xaxis) if tick.get_rotation()]
    for box in boxes + [tick.get_window_extent(renderer) for tick in turned]:
        assert min(box.x0, box.y0) >= -1
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 1


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_turned_names_keep_a_line_apart(draw):
    figure = draw().figure_
    figure.canvas.draw()
    for ax in figure.axes:
        ticks = shown_ticks(ax.xaxis)
        if not ticks or not ticks[0].get_rotation():
            continue
        x = [ax.transData.transform((tick.get_position()[0], 1))[0] for tick in ticks]
        apart = np.diff(x).min() * np.sin(np.deg2rad(ticks[0].get_rotation()))
        assert apart >= ticks[0].get_fontsize() * figure.dpi / 72


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_legend_covers_no_data(draw):
    figure = draw().figure_
    figure.canvas.draw()
    for ax in figure.axes:
        if ax.get_legend():
            legend = ax.get_legend().get_window_extent()
            assert not any(legend.overlaps(other.get_window_extent()) for other in figure.axes)


def look(handle):
    if hasattr(handle, "get_marker"):
        return to_hex(handle.get_color()), handle.get_linestyle(), handle.get_marker()
    return to_hex(handle.get_facecolor(), keep_alpha=True), handle.get_linestyle()


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_no_two_series_look_alike(draw):
    legends = [ax.get_legend() for ax in draw().figure_.axes if ax.get_legend()]
    looks = [look(handle) for legend in legends for handle in legend.legend_handles]
    assert len(set(looks)) == len(looks)


# ---- what is shown -------------------------------------------------------------------------------


def test_errors_are_sorted_by_training_rows_which_are_shown():
    display = PerClassErrorDisplay(
        {"ERM": [0.1, 0.2, 0.3]}, class_counts=[5, 500, 5000], labels=["x", "y", "z"]
    ).plot()
    ticks = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert ticks == ["z\n5,000", "y\n500", "x\n5"]
    assert [bar.get_height() for bar in display.ax_.patches] == [0.3, 0.2, 0.1]
    assert display.ax_.get_legend() is None


def test_many_classes_are_running_means_before_their_counts():
    counts = np.arange(100, 0, -1)
    error = np.where(np.arange(100) == 50, np.nan, 0.25)
    display = PerClassErrorDisplay({"ERM": error, "MM": error / 2}, counts).plot()
    lines = {line.get_label(): line.get_ydata() for line in display.ax_.get_lines()}
    assert lines["ERM"] == pytest.approx(0.25)
    assert lines["MM"] == pytest.approx(0.125)
    behind = next(ax for ax in display.figure_.axes if ax is not display.ax_)
    assert behind.get_yscale() == "log"
    assert behind.get_zorder() < display.ax_.get_zorder()
    assert behind.patches[0].get_data().values.tolist() == counts.tolist()


def test_errors_of_estimators(table):
    X, y = table
    names = np.array(["often", "rare", "rarer"])[y]
    fitted = {f"C={C}": LogisticRegression(C=C, max_iter=1000).fit(X, names) for C in (0.01, 1.0)}
    display = PerClassErrorDisplay.from_estimator(fitted, X, names, class_counts=np.bincount(y))
    assert display.labels.tolist() == ["often", "rare", "rarer"]
    for name, clf in fitted.items():
        assert display.errors[name].tolist() == per_class_error(names, clf.predict(X)).tolist()
    clf = fitted["C=1.0"]
    message = (
        "class_counts must be the training rows of each of the 3 classes of LogisticRegression, "
        "got None; pass np.unique(y_train, return_counts=True)[1]"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PerClassErrorDisplay.from_estimator(clf, X, names)
    clf.class_counts_ = np.array([7, 8, 9])
    single = PerClassErrorDisplay.from_estimator(clf, X, names)
    assert list(single.errors) == ["LogisticRegression"]
    assert single.class_counts.tolist() == [7, 8, 9]


def test_counts_of_splits_share_classes_and_name_their_ratios():
    splits = {"train": ["a"] * 90 + ["b"] * 9, "test": ["b"] * 5 + ["c"]}
    display = ClassDistributionDisplay.from_labels(splits)
    assert {name: count.tolist() for name, count in display.counts.items()} == {
        "train": [90, 9, 0],
        "test": [0, 5, 1],
    }
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == [
        "train: 99 rows, imbalance ratio 10, empty classes: 1",
        "test: 6 rows, imbalance ratio 5, empty classes: 1",
    ]


def test_counts_are_on_a_log_scale_with_every_class_above_its_foot():
    display = ClassDistributionDisplay.from_labels([0] * 100 + [1] * 10 + [2])
    assert display.ax_.get_title() == "111 rows, imbalance ratio 100"
    assert display.ax_.get_yscale() == "log"
    assert display.ax_.get_ylim()[0] < 1
    assert [label.get_text() for label in display.ax_.get_xticklabels()] == [
        "0\n100",
        "1\n10",
        "2\n1",
    ]


def test_names_are_not_read_as_formulas():
    display = ClassDistributionDisplay.from_labels(["$5", "$10", "a_very_long_name_of_a_class"] * 3)
    texts = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert texts == ["$10\n3", "$5\n3", "a_very_long_name_of…\n3"]
    assert not any(label.get_parse_math() for label in display.ax_.get_xticklabels())


def test_margins_of_a_multiclass_estimator_are_grouped_by_training_rows(table):
    X, y = table
    y = y * 2 + np.arange(len(y)) % 2
    clf = LogisticRegression(max_iter=1000).fit(X, y)
    counts = np.array([10, 60, 50, 20, 40, 30])
    display = MarginDisplay.from_estimator(clf, X, y, class_counts=counts)
    margin = sample_margins(clf.decision_function(X), y)
    for name, group in {
        "head, 60 to 50 rows": [1, 2],
        "middle, 40 to 30 rows": [4, 5],
        "tail, 20 to 10 rows": [3, 0],
    }.items():
        assert display.margins[name].tolist() == margin[np.isin(y, group)].tolist()
        wrong = (clf.predict(X) != y)[np.isin(y, group)].mean()
        labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
        assert f"{name}: {wrong:.1%} wrong" in labels


def test_margins_of_a_binary_estimator_are_shown_by_class(binary_table):
    X, y = binary_table
    names = np.where(y == 1, "fraud", "fine")
    clf = LogisticRegression().fit(X, names)
    display = MarginDisplay.from_estimator(clf, X, names, bins=10)
    score = clf.decision_function(X)
    assert display.margins["fraud"].tolist() == score[y == 1].tolist()
    assert display.margins["fine"].tolist() == (-score[y == 0]).tolist()


def test_histograms_of_margins_have_area_one_by_group():
    display = margin_display(2)
    for polygon in display.ax_.patches:
        # The outline runs along the tops of the bins, each two points wide.
        tops = polygon.get_xy()[1 : 2 * 40 + 1 : 2, 1]
        assert tops.sum() == pytest.approx(1)


def test_curves_show_loss_and_score_and_where_reweighting_starts():
    display = TrainingCurvesDisplay.from_history(HISTORY, drw_epoch=8)
    loss, score = display.ax_
    assert loss.get_lines()[0].get_xydata()[3].tolist() == [4, 1.7]
    assert score.get_lines()[0].get_ydata().tolist() == [e / 10 for e in range(10)]
    # Eight epochs are completed: the weights act first in the ninth.
    for ax in (loss, score):
        assert ax.get_lines()[-1].get_xdata() == [8.5, 8.5]


def test_curves_without_a_validation_part_are_one_axes():
    class Fitted:
        history_ = [{"train_loss": 1.0}, {"train_loss": 0.5}]  # noqa: RUF012

    display = TrainingCurvesDisplay.from_history(Fitted())
    assert [line.get_label() for line in display.ax_.get_lines()] == ["training"]
    assert len(display.figure_.axes) == 1


def test_curves_of_the_network_inside_a_pipeline_a_search_or_a_wrapper(table):
    X, y = table
    network = MaxMarginClassifier(loss="cross_entropy", max_epochs=2, random_state=0)
    pipeline = make_pipeline(StandardScaler(), network)
    search = GridSearchCV(pipeline, {"maxmarginclassifier__lr": [1e-3]}, cv=2)
    for model in (pipeline, LogitAdjustment(pipeline), search):
        display = TrainingCurvesDisplay.from_history(model.fit(X, y))
        assert len(display.history) == 2
    frozen = LogitAdjustment(FrozenEstimator(pipeline)).fit(X, y)
    assert TrainingCurvesDisplay.from_history(frozen).history == pipeline[-1].history_
    forest = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    with pytest.raises(ValueError, match=r"history must be a fitted estimator.* got Pipeline\("):
        TrainingCurvesDisplay.from_history(forest)


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: PerClassErrorDisplay({"ERM": [0.1, 0.2]}, [5, 1]).plot(ax, alpha=0.5),
        lambda ax: ClassDistributionDisplay({"rows": [5, 1]}).plot(ax, alpha=0.5),
        lambda ax: MarginDisplay({"all": [0.1, 0.2]}).plot(ax, alpha=0.5),
        lambda ax: TrainingCurvesDisplay([{"train_loss": 1.0}]).plot(ax, alpha=0.5),
    ],
)
def test_plot_draws_on_the_given_axes_and_passes_its_options_on(draw):
    figure, axes = plt.subplots(1, 2)
    display = draw(axes[1])
    assert display.ax_ is axes[1]
    assert display.figure_ is figure
    assert not axes[0].has_data()
    assert axes[1].get_children()[0].get_alpha() == 0.5


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: PerClassErrorDisplay({"ERM": [0.1]}, [5, 1]),
            "errors and labels must have one value for each of 2 classes, got {'labels': 2, "
            "'ERM': 1}",
        ),
        (
            lambda: ClassDistributionDisplay({"train": [5, 1], "test": [0, 0]}),
            "every split must have rows of the classes, these have none: ['test']",
        ),
        (
            lambda: MarginDisplay({"head": [0.5], "tail": []}),
            "every group must have samples, these have none: ['tail']",
        ),
        (
            lambda: MarginDisplay({"head": [0.5], "tail": [0.1, np.nan]}),
            "margins must be finite, those of ['tail'] are not; leave such samples out",
        ),
        (
            lambda: TrainingCurvesDisplay([]),
            "history must be a fitted estimator, or a list of a dict for each epoch with "
            "train_loss, got []",
        ),
        (
            lambda: TrainingCurvesDisplay(HISTORY, drw_epoch=0.8),
            "drw_epoch must be a number of completed epochs, got 0.8; for a fraction pass "
            "round(fraction * max_epochs)",
        ),
        (
            lambda: TrainingCurvesDisplay(HISTORY).plot(plt.subplots()[1]),
            "ax must be 2 axes, got 1; see plt.subplots(2)",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        draw()


def test_labels_that_the_estimator_does_not_know_are_refused(binary_table):
    X, y = binary_table
    clf = LogisticRegression().fit(X, y)
    with pytest.raises(ValueError, match=r"^y has labels \[7\] that are not in classes_"):
        MarginDisplay.from_estimator(clf, X, np.where(y == 1, 7, 0))


def test_missing_matplotlib_is_named_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"need matplotlib: pip install imbmargin\[plot\]$"):
        margin_display(2)


@pytest.mark.parametrize("module", [plotting, _figure])
def test_matplotlib_is_not_imported_with_the_module(module):
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert not re.search(r"^(import|from) matplotlib", source, re.MULTILINE)


def test_bars_beyond_the_colours_are_hatched():
    _, ax = plt.subplots()
    _figure.draw_bars(ax, {f"method {i}": np.ones(2) for i in range(8)})
    looks = [(bars[0].get_facecolor(), bars[0].get_hatch()) for bars in ax.containers]
    assert len(set(looks)) == 8
    assert looks[7][0] == looks[0][0]
