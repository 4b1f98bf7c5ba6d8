"""Boosted networks with scikit-learn's interface, for pipelines and grid searches.

>>> from sklearn.datasets import make_moons
>>> from sklearn.pipeline import make_pipeline
>>> from sklearn.preprocessing import StandardScaler
>>> from repro.methods.gbnn.estimator import GBNNClassifier
>>> x, y = make_moons(200, noise=0.2, random_state=0)
>>> model = make_pipeline(StandardScaler(), GBNNClassifier(n_units=20, shrinkage=0.3))
>>> bool(model.fit(x, y).score(x, y) > 0.9)
True
>>> model[-1].merged_network_[1].out_features
20
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from repro.methods.gbnn.boosting import GradientBoosting
from repro.methods.gbnn.losses import Loss, loss_for
from repro.methods.gbnn.network import BoostedNetwork


class _GBNN(BaseEstimator):
    """What both estimators share; see `repro.methods.gbnn.GradientBoosting` for the settings."""

    def __init__(
        self,
        n_units: int = 200,
        units_per_step: int = 1,
        shrinkage: float = 1.0,
        subsample: float = 0.5,
        max_iter: int = 200,
        alpha: float = 1e-4,
        restarts: int = 1,
        prior: str = "zeros",
        random_state: Any = None,
    ) -> None:
        self.n_units = n_units
        self.units_per_step = units_per_step
        self.shrinkage = shrinkage
        self.subsample = subsample
        self.max_iter = max_iter
        self.alpha = alpha
        self.restarts = restarts
        self.prior = prior
        self.random_state = random_state

    def _boost(self, x: np.ndarray, target: np.ndarray, loss: Loss) -> None:
        boosting = GradientBoosting(
            units=self.n_units,
            per_step=self.units_per_step,
            shrinkage=self.shrinkage,
            subsample=self.subsample,
            iterations=self.max_iter,
            alpha=self.alpha,
            restarts=self.restarts,
            prior=self.prior,
            seed=int(check_random_state(self.random_state).randint(2**31 - 1)),
        )
        self.network_: BoostedNetwork = boosting.fit(
            torch.from_numpy(x), torch.from_numpy(target), loss
        )
        self.merged_network_ = self.network_.merge()
        self.n_iter_ = int(self.network_.trained)

    def _outputs(self, x: Any, blocks: int | None) -> np.ndarray:
        check_is_fitted(self)
        x = validate_data(self, x, dtype=np.float64, reset=False)
        model = self.merged_network_ if blocks is None else self.network_.merge(blocks)
        with torch.no_grad():
            outputs: Tensor = model(torch.from_numpy(x))
        return outputs.numpy()


class GBNNRegressor(RegressorMixin, _GBNN):
    """Regression with a network trained by gradient boosting.

    Standardise the features first. Attributes after `fit`: ``network_`` (the blocks),
    ``merged_network_`` (one ordinary network), ``n_iter_``, ``n_features_in_``.
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Trains on X (N, D) and y (N,)."""
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        self._boost(X, y.astype(np.float64), loss_for("regression"))
        return self

    def predict(self, X: Any, blocks: int | None = None) -> np.ndarray:
        """Predictions (N,) by the first ``blocks`` blocks, by all if None."""
        return self._outputs(X, blocks)[:, 0]


class GBNNClassifier(ClassifierMixin, _GBNN):
    """Classification with a network trained by gradient boosting.

    Standardise the features first. Attributes after `fit`: ``classes_`` and those of
    `GBNNRegressor`.
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Trains on X (N, D) and labels y (N,)."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("Classifier can't train when only one class is present.")
        self._boost(X, labels, loss_for("classification", len(self.classes_), self.prior))  # type: ignore[arg-type]
        return self

    def decision_function(self, X: Any, blocks: int | None = None) -> np.ndarray:
        """Logits: (N,) for two classes, (N, K) for more."""
        outputs = self._outputs(X, blocks)
        return outputs[:, 0] if len(self.classes_) == 2 else outputs

    def predict_proba(self, X: Any, blocks: int | None = None) -> np.ndarray:
        """Probabilities (N, K) of the classes."""
        logits = torch.from_numpy(self._outputs(X, blocks))
        if len(self.classes_) == 2:
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        return logits.softmax(1).numpy()

    def predict(self, X: Any, blocks: int | None = None) -> np.ndarray:
        """The most probable class (N,)."""
        best = self.predict_proba(X, blocks).argmax(1)
        return self.classes_[best]
