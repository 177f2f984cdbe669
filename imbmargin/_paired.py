"""Training in which every batch has a partner, drawn at class rates of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from imbmargin.estimator import MaxMarginClassifier
from imbmargin.samplers import batches_at_rates

__all__ = ["PairedBatches"]


class PairedBatches(MaxMarginClassifier):
    """Classifier whose step finds a second batch in ``_partner``.

    A subclass says in `_partner_rates` at which rates it is drawn.
    """

    _partners: Iterator[Any]
    _partner: Any

    def _partner_rates(self, class_counts: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
    ) -> None:
        """Run the batches of one epoch, in training beside those of the other rates."""
        if not training or iterator is None:
            super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
            return
        self._partners = iter(batches_at_rates(iterator, self._partner_rates))
        try:
            super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
        finally:
            del self._partners
            self.__dict__.pop("_partner", None)

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Take one optimization step, in which `train_step_single` may be called several times."""
        self._partner = next(self._partners)
        return super().train_step(batch, **fit_params)
