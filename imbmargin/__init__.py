"""Deep learning on imbalanced data for people who use scikit-learn."""
