"""Estimators with scikit-learn's interface: a tanh network fitted by straight-line steps."""

import itertools
import warnings
from typing import Any

import equinox as eqx
import jax
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data

from chordflow.bounds import require_within
from chordflow.lookup import chosen
from chordflow.losses import AbstractLoss, CrossEntropy, SquaredError
from chordflow.models import MLP, mlp
from chordflow.problem import Problem
from chordflow.training import FitState, fit

ACTIVATIONS = {"tanh": "tanh", "logistic": "sigmoid", "identity": "identity", "relu": "relu", "softplus": "softplus"}
"""scikit-learn's names of activations and two of our own, by the names of :mod:`chordflow.models`."""


class _ChordMLP(BaseEstimator):
    """What both estimators share: the network, the fit, early stopping along the path."""

    # Any: scikit-learn asks constructors to take whatever they are given; fit looks at it.
    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: Any = "tanh",
        *,
        alpha: Any = 1e-4,
        max_iter: Any = 100,
        tol: Any = 1e-6,
        n_iter_no_change: Any = 5,
        random_state: Any = None,
        warm_start: Any = False,
        verbose: Any = False,
        early_stopping: Any = False,
        validation_fraction: Any = 0.1,
        fraction: Any = None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.alpha = alpha
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.fraction = fraction

    def _check_options(self) -> None:
        """One line for the first mistake in the constructor's arguments, which scikit-learn wants looked at here."""
        name = type(self).__name__
        chosen(f"{name}: activation", self.activation, ACTIVATIONS)
        require_within(name, "alpha", self.alpha, 0.0)
        require_within(name, "tol", self.tol, 0.0)
        require_within(name, "max_iter", self.max_iter, 1)
        require_within(name, "n_iter_no_change", self.n_iter_no_change, 1)
        require_within(name, "validation_fraction", self.validation_fraction, 0.0, 1.0, open_left=True, open_right=True)
        if self.fraction is not None:
            require_within(name, "fraction", self.fraction, 0.0, 1.0, open_left=True)
        for option in ("max_iter", "n_iter_no_change"):
            if not isinstance(getattr(self, option), (int, np.integer)):
                raise ValueError(f"{name}: {option} must be an integer, got {getattr(self, option)!r}")
        try:
            sizes = np.atleast_1d(self.hidden_layer_sizes)
        except ValueError:
            sizes = np.empty(0)  # ragged
        if sizes.ndim != 1 or not np.issubdtype(sizes.dtype, np.integer) or not np.all(sizes > 0):
            raise ValueError(f"{name}: hidden_layer_sizes must be positive integers, got {self.hidden_layer_sizes!r}")

    # --- fitting ----------------------------------------------------------------------------------------------

    def _fit_network(self, X: np.ndarray, targets: np.ndarray, weights: np.ndarray, loss: AbstractLoss) -> None:
        """Fit targets (N, Q) in float64 and set the fitted attributes."""
        random = check_random_state(self.random_state)
        held_out = None
        if self.early_stopping:
            stratify = np.argmax(targets, axis=1) if isinstance(loss, CrossEntropy) else None
            kept, held = train_test_split(
                np.arange(len(X)), test_size=self.validation_fraction, random_state=random, stratify=stratify
            )
            held_out = (X[held], targets[held], weights[held])
            X, targets, weights = X[kept], targets[kept], weights[kept]
        if not np.any(weights > 0):
            raise ValueError("sample_weight: all training samples have weight zero, expected at least one positive")
        with jax.enable_x64(True):
            params = self._initial_params(X.shape[1], targets.shape[1], random)
            problem = _padded_problem(self._network, X, targets, weights, loss)
            watch = _Watch(self, problem, params, held_out, loss)
            result = fit(
                problem,
                params,
                # scikit-learn's penalty is ½ alpha |W|²/N.
                alpha=float(self.alpha) / float(np.sum(weights)),
                max_steps=self.max_iter,
                fraction=self._fraction,
                callback=watch,
            )
            best = result.params if watch.best is None else problem.ravel(params)[1](watch.best)
            layers = jax.tree.map(np.asarray, best)
        if result.result_name == "not_finite":
            raise ValueError("the loss or its derivatives are not finite: scale X and y, for instance to unit variance")
        if result.result_name == "step_limit":
            warnings.warn(
                f"max_iter = {self.max_iter} steps were taken and the loss still falls: increase max_iter or tol",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.coefs_ = [layer["w"] for layer in layers]
        self.intercepts_ = [layer["b"] for layer in layers]
        self.loss_curve_ = [float(cost) for cost in result.history.cost]
        self.loss_ = self.loss_curve_[-1]
        self.n_iter_ = len(self.loss_curve_)
        self.n_layers_ = len(self.coefs_) + 1
        self.n_outputs_ = targets.shape[1]
        self.validation_losses_ = watch.losses if self.early_stopping else None
        self.result_ = result.result_name

    @property
    def _fraction(self) -> float:
        """How much of the way a step aims: all of it, or a quarter where the path is watched for early stopping."""
        return (0.25 if self.early_stopping else 1.0) if self.fraction is None else float(self.fraction)

    @property
    def _network(self) -> MLP:
        return MLP(ACTIVATIONS[self.activation])

    def _initial_params(self, num_features: int, num_outputs: int, random: np.random.RandomState) -> Any:
        hidden = [int(size) for size in np.atleast_1d(self.hidden_layer_sizes)]
        widths = (num_features, *hidden, num_outputs)
        if self.warm_start and hasattr(self, "coefs_"):
            got = [w.shape for w in self.coefs_]
            expected = list(itertools.pairwise(widths))
            if got != expected:
                raise ValueError(f"warm_start: the fitted network has shapes {got}, the new data need {expected}")
            return tuple({"w": w, "b": b} for w, b in zip(self.coefs_, self.intercepts_, strict=True))
        seed = int(random.randint(np.iinfo(np.int32).max))
        return mlp(widths, activation=ACTIVATIONS[self.activation], seed=seed).params

    # --- prediction -------------------------------------------------------------------------------------------

    def _outputs(self, X: Any) -> np.ndarray:
        """Outputs (N, Q) of the network on validated rows."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        params = tuple({"w": w, "b": b} for w, b in zip(self.coefs_, self.intercepts_, strict=True))
        with jax.enable_x64(True):
            rows = _pad(X, _padded_size(len(X)))
            return np.asarray(_apply(self._network, params, rows))[: len(X)]


class _Watch:
    """Follows a fit step by step: progress lines, the validation loss, and when nothing improves any more."""

    def __init__(self, estimator: _ChordMLP, problem: Problem, params: Any, held_out: Any, loss: AbstractLoss):
        self.estimator, self.losses, self.best, self.lowest, self.idle = estimator, [], None, np.inf, 0
        self.held_out = None
        if held_out is not None:
            X, targets, weights = held_out
            self.held_out = _padded_problem(estimator._network, X, targets, weights, loss)
        self.unravel = problem.ravel(params)[1]

    def __call__(self, state: FitState) -> bool:
        """Whether to stop: no improvement by more than tol for n_iter_no_change steps."""
        value = float(state.cost)
        if self.held_out is not None:
            value = float(_cost(self.held_out, self.unravel(state.theta)))
            self.losses.append(value)
        if self.estimator.verbose:
            print(f"step {int(state.num_steps)}, loss {float(state.cost):.6g}, validation {value:.6g}")
        self.idle = 0 if value < self.lowest - self.estimator.tol else self.idle + 1
        if value < self.lowest:
            self.lowest = value
            self.best = state.theta if self.held_out is not None else None
        return self.idle >= self.estimator.n_iter_no_change


def _sample_weights(weights: Any, num: int) -> np.ndarray:
    """(N,) in float64, ones for None."""
    if weights is None:
        return np.ones(num)
    weights = check_array(weights, dtype="float64", ensure_2d=False, input_name="sample_weight")
    if weights.shape != (num,):
        raise ValueError(f"sample_weight must have shape ({num},), got {weights.shape}")
    if np.any(weights < 0):
        raise ValueError(f"sample_weight must be non-negative, got {weights.min()}")
    return weights


def _padded_size(num: int) -> int:
    """The next of 8, 10, 12, 14, 16, 20, 24, 28, 32, …: few sizes, at most a quarter more."""
    step = max(2, 2 ** (max(num - 1, 1).bit_length() - 3))
    return max(8, -(-num // step) * step)


def _pad(rows: np.ndarray, size: int, fill: float = 0.0) -> np.ndarray:
    return np.concatenate([rows, np.full((size - len(rows), *rows.shape[1:]), fill, rows.dtype)])


def _padded_problem(
    network: MLP, X: np.ndarray, targets: np.ndarray, weights: np.ndarray, loss: AbstractLoss
) -> Problem:
    """The problem with samples of weight 0 up to one of few sizes, so that new sizes seldom compile anything anew."""
    size = _padded_size(len(X))
    # A uniform distribution is a label of every loss here.
    y = _pad(targets, size, 1.0 / targets.shape[1])
    return Problem(network, _pad(X, size), y, loss, weights=_pad(weights, size))


@eqx.filter_jit
def _cost(problem: Problem, params: Any) -> Any:
    return problem.cost(params)


def _forward(network: MLP, params: Any, rows: Any) -> Any:
    return jax.vmap(lambda row: network(params, row))(rows)


_apply = jax.jit(_forward, static_argnums=0)


class ChordRegressor(RegressorMixin, _ChordMLP):
    """A network for regression, fitted by :func:`chordflow.fit`: a drop-in for ``MLPRegressor`` of scikit-learn.

    Minimises ½ Σ wₙ |f(xₙ) − yₙ|²/Σ wₙ + ½ alpha |θ|²/Σ wₙ, biases included in θ, by steps along the straight line in
    output space. scikit-learn also divides the squares by the number of outputs. Work is in float64 whatever jax's
    flags; inputs are used as they are: standardise them.

    Parameters
    ----------
    hidden_layer_sizes, activation, alpha, max_iter, tol, n_iter_no_change, random_state, warm_start, verbose,
    early_stopping, validation_fraction
        As for ``MLPRegressor``; ``tanh`` is the default, the theory wants smooth activations, and ``softplus`` is one
        more. ``max_iter`` counts steps, each over all samples.
    fraction
        How much of the way to the targets a step aims. None: 1, and 0.25 with ``early_stopping``, where the loss on
        the validation split is followed along the path and its best point kept: t as regulariser.

    Attributes
    ----------
    coefs_, intercepts_, loss_, loss_curve_, n_iter_, n_layers_, n_outputs_, n_features_in_
        As for ``MLPRegressor``, float64.
    validation_losses_
        Loss on the validation split after each step, or None.
    result_
        Why the fit ended: a name of :class:`chordflow.FIT_RESULTS`.

    Examples
    --------
    >>> import numpy as np, chordflow as cf
    >>> X = np.linspace(-1, 1, 30)[:, None]
    >>> model = cf.sklearn.ChordRegressor((10,), alpha=0, random_state=0).fit(X, np.sin(3 * X[:, 0]))
    >>> bool(model.score(X, np.sin(3 * X[:, 0])) > 0.9999)
    True
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "ChordRegressor":
        """Fit to ``X`` (N, d) and ``y`` (N,) or (N, Q); ``sample_weight`` (N,) as multiplicities."""
        self._check_options()
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        weights = _sample_weights(sample_weight, len(X))
        self._one_column = y.ndim == 1
        self._fit_network(X, np.asarray(y, np.float64).reshape(len(X), -1), weights, SquaredError())
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predicted values, shaped like the ``y`` of ``fit``."""
        outputs = self._outputs(X)
        return outputs[:, 0] if self._one_column else outputs


class ChordClassifier(ClassifierMixin, _ChordMLP):
    """A network for classification, fitted by :func:`chordflow.fit`: a drop-in for ``MLPClassifier`` of scikit-learn.

    Minimises the mean cross-entropy of softmax outputs, weighted, + ½ alpha |θ|²/Σ wₙ by generalised Gauss–Newton
    steps. With alpha = 0 the logits of separable data grow without bound (one-hot labels have no equilibrium).
    Parameters and attributes as for :class:`ChordRegressor`, and ``classes_``.

    Examples
    --------
    >>> import numpy as np, chordflow as cf
    >>> X = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    >>> model = cf.sklearn.ChordClassifier((5,), random_state=0).fit(X, ["low", "low", "high", "high"])
    >>> model.predict([[-1.5], [1.5]]).tolist()
    ['low', 'high']
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "ChordClassifier":
        """Fit to ``X`` (N, d) and class labels ``y`` (N,); ``sample_weight`` (N,) as multiplicities."""
        from sklearn.utils.multiclass import check_classification_targets

        self._check_options()
        X, y = validate_data(self, X, y, dtype=np.float64)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        weights = _sample_weights(sample_weight, len(X))
        binarizer = LabelBinarizer().fit(y)
        self.classes_ = binarizer.classes_
        if len(self.classes_) < 2:
            raise ValueError(f"ChordClassifier needs at least two classes, got one class: {self.classes_[0]!r}")
        one_hot = binarizer.transform(y).astype(np.float64)
        if one_hot.shape[1] == 1:
            one_hot = np.hstack([1 - one_hot, one_hot])
        self._fit_network(X, one_hot, weights, CrossEntropy())
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (N, number of classes), columns in the order of ``classes_``."""
        logits = self._outputs(X)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of :meth:`predict_proba`, exact where probabilities underflow."""
        logits = self._outputs(X)
        shifted = logits - logits.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row."""
        best = np.argmax(self._outputs(X), axis=1)
        return self.classes_[best]
