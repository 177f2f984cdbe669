"""
Beside imbalanced-learn's samplers and ensembles
================================================

What users of scikit-learn would otherwise pick, on the breast cancer table with 250 benign and 12
malignant training rows: over-sampling before the same network, and two ensembles. Five seeds,
because with 12 rare rows one split says little.
"""

import matplotlib.pyplot as plt
import numpy as np
from imblearn.ensemble import BalancedRandomForestClassifier, EasyEnsembleClassifier
from imblearn.over_sampling import SMOTE, RandomOverSampler
from imblearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from imbmargin import balanced_accuracy, make_classifier, make_step, per_class_error
from imbmargin.datasets import load_embedded


def contenders(seed):
    """Return what is compared, by name."""
    training = {"max_epochs": 40, "batch_size": 32, "random_state": seed}
    network = make_classifier("ERM", **training)
    smote = SMOTE(k_neighbors=5, random_state=seed)
    forest = BalancedRandomForestClassifier(
        sampling_strategy="all", replacement=True, bootstrap=False, random_state=seed
    )
    return {
        "ERM": network,
        "random over-sampling": make_pipeline(
            StandardScaler(), RandomOverSampler(random_state=seed), network
        ),
        "SMOTE": make_pipeline(StandardScaler(), smote, network),
        "balanced forest": forest,
        "easy ensemble": EasyEnsembleClassifier(random_state=seed),
        "LDAM-DRW": make_classifier("LDAM-DRW", **training),
        "MM-DRW": make_classifier("MM-DRW", **training),
    }


# %%
# ``make_step`` keeps the most frequent class and thins the others.
scores, errors = {}, {}
for seed in range(5):
    data = load_embedded("breast_cancer", random_state=seed)
    X, y = make_step(
        data.X_train,
        data.y_train,
        imbalance_ratio=20,
        class_order=["benign", "malignant"],
        random_state=seed,
    )
    for name, clf in contenders(seed).items():
        predicted = clf.fit(X, y).predict(data.X_test)
        scores.setdefault(name, []).append(balanced_accuracy(data.y_test, predicted))
        error = per_class_error(data.y_test, predicted, labels=["benign", "malignant"])
        errors.setdefault(name, []).append(error)

# %%
# Every seed is a point, the bar is the mean. Plain training is behind; on a table this small the
# others are within each other's spread. Compare on yours with ``imbmargin benchmark --data``.
fig, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
names = list(scores)[::-1]
for i, name in enumerate(names):
    axes[0].barh(i, np.mean(scores[name]), color="tab:blue", alpha=0.4)
    axes[0].plot(scores[name], np.full(5, i), "o", color="tab:blue", markersize=4)
    benign, malignant = np.mean(errors[name], axis=0)
    axes[1].barh(i + 0.2, benign, height=0.4, color="grey", alpha=0.6)
    axes[1].barh(i - 0.2, malignant, height=0.4, color="tab:red", alpha=0.6)
axes[0].set(xlabel="balanced accuracy", xlim=(0.75, 1))
axes[0].set_yticks(range(len(names)), names)
axes[1].set_xlabel("error of a class")
axes[1].legend(["benign (frequent)", "malignant (rare)"], frameon=False)
plt.show()
