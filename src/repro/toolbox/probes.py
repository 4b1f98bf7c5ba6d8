"""What features say of a label: the accuracy of a fresh classifier that is fitted after the fact.

A classifier that was trained against an encoder says little of it: it may merely lag behind.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from repro.knobs import Natural, checked

Labelled = tuple[Tensor, Tensor]


@checked
def probe_accuracy(known: Labelled, asked: Labelled, hidden: Natural = 0, seed: int = 0) -> float:
    """Share of the asked examples that a probe names rightly, in [0, 1].

    Args:
        known: features (N, C) and labels (N,) that it is fitted on.
        asked: those that it is asked for.
        hidden: units of a hidden layer; 0: a logistic regression.
        seed: of the hidden layer's first weights.
    """
    (x, y), (x_asked, y_asked) = (_arrays(each) for each in (known, asked))
    classifier = (
        MLPClassifier([hidden], alpha=1e-2, solver="lbfgs", max_iter=200, random_state=seed)
        if hidden
        else LogisticRegression(max_iter=1000)
    )
    fitted = make_pipeline(StandardScaler(), classifier).fit(x, y)
    return float((fitted.predict(x_asked) == y_asked).mean())


def _arrays(labelled: Labelled) -> tuple[np.ndarray, np.ndarray]:
    features, labels = (each.detach().cpu().numpy() for each in labelled)
    return features.astype(np.float64), labels
