"""The table that most tests train on."""

import numpy as np
from sklearn.datasets import make_classification


def three_classes(n_samples):
    """Return X (n, 8) and y (n,): three classes with about 70, 20 and 10 % of the rows."""
    X, y = make_classification(
        n_samples=n_samples,
        n_features=8,
        n_informative=6,
        n_classes=3,
        weights=[0.7, 0.2, 0.1],
        class_sep=2.0,
        random_state=0,
    )
    return X.astype(np.float32), y
