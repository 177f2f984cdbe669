"""
Decision boundaries of ERM, LDAM and MM
=======================================

Two half-moons that overlap, with 503 rows of one and 15 of the other. Above, three losses by
themselves; below, with class weights: from the first epoch (CB-RW), and for the last fifth (DRW).
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons
from sklearn.inspection import DecisionBoundaryDisplay
from sklearn.metrics import balanced_accuracy_score

from imbmargin import make_classifier, make_step

X, y = make_moons(2000, noise=0.3, random_state=0)
X_train, y_train = make_step(X[:1000], y[:1000], imbalance_ratio=500 / 15, random_state=0)
X_test, y_test = X[1000:], y[1000:]
print("training rows of each class:", np.bincount(y_train))

# %%
# The same network and training for all. The numbers are balanced accuracy on 1,000 test rows in
# which both classes are equally frequent. The loss alone gives the rare class what is left over;
# its weight moves the boundary.
methods = ["ERM", "LDAM", "MM", "CB-RW", "LDAM-DRW", "MM-DRW"]
fig, axes = plt.subplots(2, 3, figsize=(9, 5), sharex=True, sharey=True, layout="constrained")
for name, ax in zip(methods, axes.flat, strict=True):
    clf = make_classifier(name, max_epochs=100, batch_size=64, random_state=0)
    clf.fit(X_train, y_train)
    score = balanced_accuracy_score(y_test, clf.predict(X_test))
    DecisionBoundaryDisplay.from_estimator(
        clf, X, response_method="predict", ax=ax, alpha=0.25, cmap="coolwarm", grid_resolution=150
    )
    frequent, rare = X_train[y_train == 0], X_train[y_train == 1]
    ax.scatter(*frequent.T, s=8, color="tab:blue", alpha=0.6, linewidth=0)
    ax.scatter(*rare.T, s=45, marker="^", color="tab:red", edgecolor="white")
    ax.set(title=f"{name}: {score:.3f}", ylim=(-1.4, 1.9))
plt.show()
