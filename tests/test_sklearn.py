"""The estimators: scikit-learn's own checks, and laws of their own."""

import logging
import pickle
from typing import Any

import jax
import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import chordflow as cf
from chordflow.sklearn import ChordClassifier, ChordRegressor, _padded_size

ESTIMATORS = [ChordRegressor((6,), random_state=0), ChordClassifier((6,), random_state=0)]
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def all_checks():
    for estimator in ESTIMATORS:
        yield from estimator_checks_generator(estimator)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "check"),
    list(all_checks()),
    ids=lambda v: getattr(getattr(v, "func", v), "__name__", type(v).__name__),
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_early_stopping_keeps_the_best_point_of_the_path():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (60, 1))
    y = np.sin(4 * X[:, 0]) + 0.4 * rng.normal(size=60)
    stopped = ChordRegressor((20,), alpha=0, random_state=1, early_stopping=True, validation_fraction=0.3).fit(X, y)
    losses = stopped.validation_losses_
    assert losses is not None
    assert np.argmin(losses) < len(losses) - 1, "the path was followed past its best point"
    assert np.all(np.diff(stopped.loss_curve_) <= 0)
    full = ChordRegressor((20,), alpha=0, random_state=1).fit(X, y)
    grid = np.linspace(-1, 1, 200)[:, None]
    errors = [np.mean((model.predict(grid) - np.sin(4 * grid[:, 0])) ** 2) for model in (stopped, full)]
    assert errors[0] < errors[1], "the path is a regulariser"


def test_the_path_is_followed_anew_with_all_samples():
    rng = np.random.default_rng(3)
    X = rng.uniform(-1, 1, (40, 1))
    y = np.sin(4 * X[:, 0]) + 0.3 * rng.normal(size=40)
    options: dict[str, Any] = {"alpha": 0, "random_state": 1, "early_stopping": True, "validation_fraction": 0.25}
    anew = ChordRegressor((10,), **options).fit(X, y)
    kept = ChordRegressor((10,), **options, refit=False).fit(X, y)
    assert anew.validation_losses_ is not None
    assert anew.validation_losses_ == kept.validation_losses_
    assert anew.best_step_ == 1 + np.argmin(anew.validation_losses_)
    assert len(anew.loss_curve_) == anew.best_step_
    assert anew.loss_ == pytest.approx(0.5 * np.mean((anew.predict(X) - y) ** 2), rel=1e-9), "of all samples"
    # The parameters kept otherwise are those of the step itself: their loss on some quarter of the samples is its.
    rows, held = train_test_split(np.arange(40), test_size=0.25, random_state=np.random.RandomState(1))
    loss = 0.5 * np.mean((kept.predict(X[held]) - y[held]) ** 2)
    assert loss == pytest.approx(min(anew.validation_losses_), rel=1e-9)
    assert np.any(anew.coefs_[0] != kept.coefs_[0])
    assert kept.best_step_ is not None
    assert kept.best_step_ < kept.n_iter_, "later steps were taken"
    assert kept.loss_ == pytest.approx(0.5 * np.mean((kept.predict(X[rows]) - y[rows]) ** 2), rel=1e-9), "of that step"


@pytest.mark.parametrize("fraction", [None, 0.5])
def test_the_watched_path_falls_from_large_damping_or_samples_the_line(fraction):
    X = np.linspace(-1, 1, 24)[:, None]
    y = np.sin(3 * X[:, 0])
    options: dict[str, Any] = {"alpha": 0, "random_state": 0, "early_stopping": True, "max_iter": 3}
    with pytest.warns(ConvergenceWarning, match="max_iter = 3"):
        model = ChordRegressor((10,), **options, fraction=fraction, refit=False, validation_fraction=0.25).fit(X, y)
    losses = np.array(model.loss_curve_)
    if fraction is None:
        # Implicit gradient flow over the time 1/λ = 1/Σσ² has hardly begun.
        assert losses[0] > 0.5 * (0.5 * np.mean(y**2))
    else:
        # Each step leaves 1 - f of the straight line.
        np.testing.assert_allclose(losses[1:] / losses[:-1], (1 - fraction) ** 2, rtol=0.05)


def test_the_loss_is_the_one_the_docstring_states():
    data: Any = load_diabetes()
    X, y = data.data, data.target
    X, y = StandardScaler().fit_transform(X)[:40, :3], y[:40]
    y = y - y.mean()
    model = ChordRegressor((4,), activation="identity", alpha=1.0, tol=0, max_iter=200, random_state=0).fit(X, y)
    theta = np.concatenate([part.ravel() for part in (*model.coefs_, *model.intercepts_)])
    objective = 0.5 * np.mean((model.predict(X) - y) ** 2) + 0.5 * 1.0 / 40 * np.sum(theta**2)
    assert model.loss_ == pytest.approx(objective, rel=1e-9)


def test_pipelines_cross_validation_grid_search_and_pickles():
    X, y = (part[::2] for part in load_iris(return_X_y=True))
    model = make_pipeline(StandardScaler(), ChordClassifier((5,), alpha=1.0, random_state=0))
    assert np.mean(cross_val_score(model, X, y, cv=3)) > 0.9
    search = GridSearchCV(model, {"chordclassifier__alpha": [0.1, 10.0]}, cv=3).fit(X, y)
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    assert np.array_equal(again.predict_proba(X), search.best_estimator_.predict_proba(X))
    np.testing.assert_allclose(np.exp(again.predict_log_proba(X)), again.predict_proba(X), atol=1e-14)


def test_it_works_in_float64_whatever_the_flags_and_changes_none():
    X = np.linspace(-1, 1, 20)[:, None]
    y = np.sin(3 * X[:, 0])
    with jax.enable_x64(False):
        model = ChordRegressor((6,), alpha=0, random_state=0).fit(X, y)
        assert model.coefs_[0].dtype == np.float64
        assert model.predict(X).dtype == np.float64
        assert not jax.config.read("jax_enable_x64")
    assert model.loss_ < 1e-5


def test_warm_start_goes_on_and_another_shape_is_refused():
    X = np.linspace(-1, 1, 20)[:, None]
    y = np.sin(3 * X[:, 0])
    model = ChordRegressor((6,), alpha=0, random_state=0, max_iter=3, warm_start=True, tol=0).fit(X, y)
    first = model.loss_
    assert model.fit(X, y).loss_ < first
    with pytest.raises(ValueError, match="warm_start: the fitted network has shapes"):
        model.fit(np.hstack([X, X]), y)


def test_few_sizes_and_no_recompilation():
    sizes = {_padded_size(n) for n in range(1, 1000)}
    assert len(sizes) < 25
    assert all(n <= _padded_size(n) <= max(16, 2 * n if n <= 64 else 1.25 * n) for n in range(1, 5000))
    X = np.linspace(-1, 1, 40)[:, None]
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logging.getLogger("jax").addHandler(handler)
    try:
        with jax.log_compiles():
            ChordRegressor((7,), random_state=0).fit(X[:40], X[:40, 0])
            first, seen = seen, []
            ChordRegressor((7,), random_state=1).fit(X[:36], X[:36, 0])
    finally:
        logging.getLogger("jax").removeHandler(handler)
    assert [line for line in first if "advance" in line], "a compilation is seen: no other test has this width"
    assert not [line for line in seen if "advance" in line]


def test_reaching_max_iter_is_said():
    X = np.linspace(-1, 1, 20)[:, None]
    with pytest.warns(ConvergenceWarning, match="max_iter = 1 steps"):
        ChordRegressor((6,), max_iter=1, random_state=0).fit(X, np.sin(3 * X[:, 0]))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"hidden_layer_sizes": (0,)}, "hidden_layer_sizes must be positive integers"),
        ({"activation": "tanhh"}, "did you mean tanh"),
        ({"alpha": -1}, "alpha must be in"),
        ({"fraction": 1.5}, "fraction must be in"),
        ({"validation_fraction": 1.0}, "validation_fraction must be in"),
        ({"max_iter": 0}, "max_iter must be in"),
        ({"early_stopping": "no"}, "early_stopping must be True or False, got 'no'"),
        ({"warm_start": 1}, "warm_start must be True or False, got 1"),
        ({"hidden_layer_sizes": [[3], [4, 5]]}, "hidden_layer_sizes must be positive integers"),
    ],
)
def test_a_mistake_is_one_line(options, text):
    with pytest.raises(ValueError, match=text):
        cf.sklearn.ChordRegressor(**options).fit(np.zeros((4, 1)), np.zeros(4))


def test_no_hidden_layer_is_a_linear_model():
    X = np.random.default_rng(0).normal(size=(20, 2))
    y = X @ [2.0, -1.0] + 3
    model = ChordRegressor((), alpha=0, random_state=0).fit(X, y)
    np.testing.assert_allclose(model.coefs_[0][:, 0], [2, -1], rtol=1e-8)
    assert model.intercepts_[0][0] == pytest.approx(3, rel=1e-8)


def test_several_labels_are_logistic_regressions_of_their_own():
    """Without a hidden layer the labels share nothing: scikit-learn's logistic regression, one label at a time."""
    rng = np.random.default_rng(4)
    X = rng.normal(size=(60, 2))
    Y = (X @ rng.normal(size=(2, 3)) + rng.normal(size=(60, 3)) > 0).astype(int)
    options: dict[str, Any] = {"activation": "identity", "alpha": 1.0, "tol": 0, "random_state": 0}
    model = ChordClassifier((), **options).fit(X, Y)
    ones = np.column_stack([X, np.ones(60)])  # our penalty holds the bias too
    for q in range(3):
        one = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10).fit(ones, Y[:, q])
        np.testing.assert_allclose(model.predict_proba(X)[:, q], one.predict_proba(ones)[:, 1], rtol=1e-6)
    assert np.array_equal(model.predict(X), (model.predict_proba(X) > 0.5).astype(int))
    np.testing.assert_allclose(model.predict_log_proba(X), np.log(model.predict_proba(X)), rtol=1e-9)


def test_warm_start_with_other_classes_is_refused():
    X = np.linspace(-1, 1, 8)[:, None]
    model = ChordClassifier((3,), random_state=0, warm_start=True)
    model.classes_ = np.array(["a", "b"])  # as after a fit
    with pytest.raises(ValueError, match=r"fitted to the classes \['a' 'b'\], the new y has \['a' 'c'\]"):
        model.fit(X, list("aaccaacc"))


def test_weights_of_a_validation_part_that_are_all_zero_are_said():
    X = np.linspace(-1, 1, 10)[:, None]
    _, held = train_test_split(np.arange(10), test_size=0.3, random_state=np.random.RandomState(0))
    weights = np.ones(10)
    weights[held] = 0
    model = ChordRegressor((3,), random_state=0, early_stopping=True, validation_fraction=0.3)
    with pytest.raises(ValueError, match="all validation samples have weight zero"):
        model.fit(X, X[:, 0], sample_weight=weights)


def test_what_stops_being_finite_keeps_its_last_good_parameters(monkeypatch):
    X = np.linspace(-1, 1, 20)[:, None]
    y = np.sin(3 * X[:, 0])
    good = ChordRegressor((6,), max_iter=3, random_state=0).fit(X, y)
    monkeypatch.setattr(cf.Fit, "result_name", "not_finite")  # no small network is known to do so
    with pytest.warns(ConvergenceWarning, match="not finite after 3 steps, whose parameters are kept"):
        ended = ChordRegressor((6,), max_iter=3, random_state=0).fit(X, y)
    assert np.array_equal(ended.predict(X), good.predict(X))
    with pytest.raises(ValueError, match="not finite: scale X and y"):
        ChordRegressor((6,), random_state=0).fit(1e200 * X, 1e300 * y)


def test_partial_fit_is_not_offered():
    assert not hasattr(ChordRegressor(), "partial_fit")
