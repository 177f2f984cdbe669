"""Which of scikit-learn's checks a network is expected to fail."""


def expected_failures(estimator):
    """Only what scikit-learn expects of its own SGDClassifier and MLPClassifier."""
    reason = "a row of weight 2 and the same row twice are drawn into other batches"
    return {
        "check_sample_weight_equivalence_on_dense_data": reason,
        "check_sample_weight_equivalence_on_sparse_data": reason,
    }
