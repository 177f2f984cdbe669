"""
Margins before and after deferred re-weighting
==============================================

Deferred re-weighting (DRW) first learns from the data as they are, and gives the rare classes their
weight at the end. A callback looks at the margins of the test images at the moment before the
weights switch on; the fitted network has those after it.
"""

import matplotlib.pyplot as plt
from skorch.callbacks import Callback

from imbmargin import MaxMarginClassifier, make_long_tailed, sample_margins
from imbmargin.datasets import load_embedded
from imbmargin.plotting import MarginDisplay, TrainingCurvesDisplay

data = load_embedded("digits")
X, y = make_long_tailed(data.X_train, data.y_train, imbalance_ratio=20, random_state=0)


class LogitsAt(Callback):
    """Keep the logits of the test images after a number of epochs."""

    def __init__(self, epochs, images):
        self.epochs = epochs
        self.images = images

    def on_epoch_end(self, net, **kwargs):
        """Look, if the epoch is the one."""
        if len(net.history) == self.epochs:
            self.logits_ = net.decision_function(self.images)


epochs, start = 30, 24
before = LogitsAt(start, data.X_test)
clf = MaxMarginClassifier(
    "resnet20",
    loss="ldam",
    drw_epoch=start,
    batch_size=32,
    lr_schedule="cosine",
    max_epochs=epochs,
    callbacks=[before],
    random_state=0,
).fit(X, y)
TrainingCurvesDisplay.from_history(clf, drw_epoch=start)
plt.show()

# %%
# The margin of a test image is the logit of its label less the largest other one; below 0 it is
# wrong. Classes 0 to 5 have 23 training images and more, 6 to 9 have 16 and fewer.
logits = {
    "before DRW": next(cb for _, cb in clf.callbacks_ if isinstance(cb, LogitsAt)).logits_,
    "after DRW": clf.decision_function(data.X_test),
}
rare = data.y_test >= 6
fig, axes = plt.subplots(2, 1, figsize=(7, 6), sharex=True, sharey=True, layout="constrained")
for (name, z), ax in zip(logits.items(), axes, strict=True):
    margins = sample_margins(z, data.y_test)
    MarginDisplay({"classes 0 to 5": margins[~rare], "classes 6 to 9": margins[rare]}).plot(ax)
    ax.set_title(name, loc="right")
axes[0].set_xlabel("")
plt.show()

# sphinx_gallery_thumbnail_number = 2
