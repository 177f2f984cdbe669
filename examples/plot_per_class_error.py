"""
Error of each class: ERM, LDAM-DRW and MM-DRW
=============================================

scikit-learn's digits, made long-tailed: 124 images of the first class and 6 of the last. The test
images are balanced, so that each class counts the same. A small ResNet, 30 epochs.
"""

import matplotlib.pyplot as plt

from imbmargin import balanced_accuracy, make_classifier, make_long_tailed
from imbmargin.datasets import load_embedded
from imbmargin.plotting import ClassDistributionDisplay, PerClassErrorDisplay

data = load_embedded("digits")
X, y = make_long_tailed(data.X_train, data.y_train, imbalance_ratio=20, random_state=0)
ClassDistributionDisplay.from_labels(y)
plt.show()

# %%
# Few images and few epochs: smaller batches and a smooth schedule instead of the papers' drops.
training = {"module": "resnet20", "batch_size": 32, "lr_schedule": "cosine", "max_epochs": 30}
fitted = {}
for name in ("ERM", "LDAM-DRW", "MM-DRW"):
    fitted[name] = make_classifier(name, random_state=0, **training).fit(X, y)
    score = balanced_accuracy(data.y_test, fitted[name].predict(data.X_test))
    print(f"{name}: balanced accuracy {score:.3f}")

# %%
# The error of ERM is on the rare classes, on the right. One seed: which method is best on which
# class changes with it, that the rare classes gain does not (see the results page).
PerClassErrorDisplay.from_estimator(fitted, data.X_test, data.y_test)
plt.show()

# sphinx_gallery_thumbnail_number = 2
