"""The estimators keep scikit-learn's rules."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import check_estimator

from repro.errors import UserError
from repro.methods.gbnn.estimator import GBNNClassifier, GBNNRegressor

SMALL = {"n_units": 4, "max_iter": 20, "shrinkage": 0.5}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", [GBNNRegressor, GBNNClassifier])
def test_passes_every_check_of_scikit_learn(estimator):
    results = check_estimator(estimator(n_units=3, max_iter=15), on_fail=None)
    assert [r["check_name"] for r in results if r["status"] == "failed"] == []


def test_probabilities_prediction_and_truncation():
    x, y = load_iris(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    names = np.array(["a", "b", "c"])[y]
    model = GBNNClassifier(**SMALL, random_state=0).fit(x, names)
    assert model.score(x, names) > 0.8
    np.testing.assert_allclose(model.predict_proba(x).sum(1), 1)
    np.testing.assert_allclose(model.predict_proba(x, blocks=0), 1 / 3)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.decision_function(x), model.decision_function(x))
    two = GBNNClassifier(**SMALL, random_state=0).fit(x[:100], names[:100])
    logit = torch.from_numpy(two.decision_function(x[:100]))
    np.testing.assert_allclose(two.predict_proba(x[:100])[:, 1], torch.sigmoid(logit))


def test_a_grid_search_and_a_bad_setting():
    x, y = load_iris(return_X_y=True)
    grid = GridSearchCV(GBNNRegressor(**SMALL, random_state=0), {"shrinkage": [0.1, 1.0]}, cv=2)
    assert grid.fit(x, y).best_params_["shrinkage"] == 1.0
    with pytest.raises(UserError, match="shrinkage lies in"):
        GBNNRegressor(shrinkage=2).fit(x, y)
