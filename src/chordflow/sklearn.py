"""Estimators with scikit-learn's interface: a tanh network fitted by straight-line steps."""

import itertools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data

from chordflow.bounds import require_within
from chordflow.lookup import chosen
from chordflow.losses import AbstractLoss, CrossEntropy, Loss, SquaredError
from chordflow.models import MLP, mlp
from chordflow.problem import Problem
from chordflow.solve import SVD, Cholesky
from chordflow.training import Fit, FitState, fit
from chordflow.training.loop import default_solver

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
        n_iter_no_change: Any = 10,
        random_state: Any = None,
        warm_start: Any = False,
        verbose: Any = False,
        early_stopping: Any = False,
        validation_fraction: Any = 0.1,
        fraction: Any = None,
        refit: Any = True,
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
        self.refit = refit

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
        for option in ("early_stopping", "warm_start", "refit"):
            if not isinstance(getattr(self, option), (bool, np.bool_)):
                raise ValueError(f"{name}: {option} must be True or False, got {getattr(self, option)!r}")
        try:
            sizes = np.atleast_1d(self.hidden_layer_sizes)
        except ValueError:
            sizes = np.zeros(1)  # ragged
        # An empty one, as MLPRegressor takes it, is a linear model.
        if sizes.ndim != 1 or (sizes.size and not (np.issubdtype(sizes.dtype, np.integer) and np.all(sizes > 0))):
            raise ValueError(f"{name}: hidden_layer_sizes must be positive integers, got {self.hidden_layer_sizes!r}")

    # --- fitting ----------------------------------------------------------------------------------------------

    def _fit_network(self, X: np.ndarray, targets: np.ndarray, weights: np.ndarray, loss: AbstractLoss) -> None:
        """Fit targets (N, Q) in float64 and set the fitted attributes."""
        random = check_random_state(self.random_state)
        samples = kept = _Samples(X, targets, weights)
        held = None
        if self.early_stopping:
            stratify = np.argmax(targets, axis=1) if isinstance(loss, CrossEntropy) else None
            parts = train_test_split(
                np.arange(len(X)), test_size=self.validation_fraction, random_state=random, stratify=stratify
            )
            kept, held = (samples.take(np.asarray(part)) for part in parts)
        for name, part in (("training", kept), ("validation", held)):
            if part is not None and not np.any(part.weights > 0):
                raise ValueError(f"sample_weight: all {name} samples have weight zero, expected at least one positive")
        with jax.enable_x64(True):
            params = self._initial_params(X.shape[1], targets.shape[1], random)
            watch = _Watch(self, None if held is None else held.problem(self._network, loss), params)
            result = watched = self._walk(kept.problem(self._network, loss), params, watch)
            if held is not None and self.refit and watch.best is not None:
                count, everything = itertools.count(1), samples.problem(self._network, loss)
                result = self._walk(everything, params, lambda _: next(count) >= watch.best_step)
            keeps_best = held is not None and not self.refit and watch.best is not None
            layers = jax.tree.map(np.asarray, watch.best if keeps_best else result.params)
        self._warn(watched, result)
        self.coefs_ = [layer["w"] for layer in layers]
        self.intercepts_ = [layer["b"] for layer in layers]
        self.loss_curve_ = np.asarray(result.history.cost).tolist()
        self.loss_ = self.loss_curve_[watch.best_step - 1 if keeps_best else -1]
        self.n_iter_ = len(self.loss_curve_)
        self.n_layers_ = len(self.coefs_) + 1
        self.n_outputs_ = targets.shape[1]
        self.validation_losses_ = watch.losses if self.early_stopping else None
        self.best_step_ = watch.best_step if self.early_stopping else None
        self.result_ = watched.result_name

    def _warn(self, *ended: Fit) -> None:
        """Say why a fit ended where that is not as it should; ValueError where it never went anywhere."""
        for one in ended:
            if one.result_name == "not_finite":
                taken = int(np.sum(np.asarray(one.history.accepted)))
                cause = "the loss or its derivatives are not finite"
                if not taken:
                    raise ValueError(f"{cause}: scale X and y, for instance to unit variance")
                said = f"{cause} after {taken} steps, whose parameters are kept: scale X and y, or increase alpha"
                warnings.warn(said, ConvergenceWarning, stacklevel=4)
        if ended[0].result_name == "step_limit":
            warnings.warn(
                f"max_iter = {self.max_iter} steps were taken and the loss still falls: increase max_iter or tol",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _walk(self, problem: Problem, params: Any, callback: Callable[[FitState], Any]) -> Fit:
        """Steps from ``params``; where they are watched, along a path that begins with the largest singular values."""
        options: dict[str, Any] = {"fraction": 1.0 if self.fraction is None else float(self.fraction)}
        if self.early_stopping and self.fraction is None:
            solver = default_solver(problem, problem.ravel(params)[0].size)
            # An SVD would look for the damping of the lowest cost, which is no path.
            options |= {"damping": 1.0, "linear_solver": Cholesky() if isinstance(solver, SVD) else solver}
        # scikit-learn's penalty is ½ alpha |W|²/N.
        alpha = float(self.alpha) / float(problem.num_samples)
        return fit(problem, params, alpha=alpha, max_steps=self.max_iter, callback=callback, **options)

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

    def __init__(self, estimator: _ChordMLP, held_out: Problem | None, params: Any):
        self.estimator, self.held_out, self.params = estimator, held_out, params
        self.losses: list[float] = []
        self.best: Any = None
        self.best_step, self.lowest, self.idle = 0, np.inf, 0

    def __call__(self, state: FitState) -> bool:
        """Whether to stop: no improvement by more than tol for n_iter_no_change steps."""
        value, held_out = float(state.cost), self.held_out
        if held_out is not None:
            params = held_out.ravel(self.params)[1](state.theta)
            value = float(_cost(held_out, params))
            self.losses.append(value)
            if value < self.lowest:
                self.best, self.best_step = params, len(self.losses)
        if self.estimator.verbose:
            print(f"step {int(state.num_steps)}, loss {float(state.cost):.6g}, validation {value:.6g}")
        self.idle = 0 if value < self.lowest - self.estimator.tol else self.idle + 1
        self.lowest = min(self.lowest, value)
        return self.idle >= self.estimator.n_iter_no_change


class _Samples(NamedTuple):
    """Rows, targets (N, Q) and weights, all in float64."""

    X: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    def take(self, rows: np.ndarray) -> "_Samples":
        """Some of them."""
        return _Samples(*(part[rows] for part in self))

    def problem(self, network: MLP, loss: AbstractLoss) -> Problem:
        """The problem with samples of weight 0 up to one of few sizes: new sizes seldom compile anything anew."""
        size = _padded_size(len(self.X))
        # A uniform distribution is a label of every loss here.
        y = _pad(self.targets, size, 1.0 / self.targets.shape[1])
        return Problem(network, _pad(self.X, size), y, loss, weights=_pad(self.weights, size))


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
    """The next of 16, 32, 64, 80, 96, 112, 128, 160, …: few sizes, from 64 on at most a quarter more.

    Below 64 a compilation costs more than all the steps of a fit.
    """
    if num <= 64:
        return max(16, 1 << (num - 1).bit_length())
    step = 2 ** ((num - 1).bit_length() - 3)
    return -(-num // step) * step


def _pad(rows: np.ndarray, size: int, fill: float = 0.0) -> np.ndarray:
    return np.concatenate([rows, np.full((size - len(rows), *rows.shape[1:]), fill, rows.dtype)])


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
    hidden_layer_sizes, activation, alpha, max_iter, tol, n_iter_no_change, random_state, warm_start, verbose
        As for ``MLPRegressor``; ``tanh`` is the default, the theory wants smooth activations, and ``softplus`` is one
        more. ``max_iter`` counts steps, each over all samples.
    validation_fraction
        Size of the validation split, as for ``MLPRegressor``.
    early_stopping, refit
        With ``early_stopping`` the loss on the validation split is followed along a path, and the path then followed
        anew, to its best step, with all samples, those of the split included; ``refit=False`` keeps the
        parameters of the best step themselves, as ``MLPRegressor`` does.
    fraction
        The path: None begins with large damping, where steps are those of implicit gradient flow and large singular
        values of the Jacobian come first; f in (0, 1] samples the straight line, of which each step aims at this part
        of what is left, so that t = 1 − (1 − f)ᵏ is the regulariser.

    Attributes
    ----------
    coefs_, intercepts_, loss_, loss_curve_, n_iter_, n_layers_, n_outputs_, n_features_in_
        As for ``MLPRegressor``, float64.
    validation_losses_
        Loss on the validation split after each step, or None.
    best_step_
        The step that was best there, or None.
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


def _logistic_entropies(x: Any, y: Any) -> Any:
    """Σ log(1 + eˣ) − x y."""
    return jnp.sum(jax.nn.softplus(x) - x * y)


SEVERAL_LABELS = Loss(_logistic_entropies)
"""Of outputs that are each the logit of a label of its own."""


class ChordClassifier(ClassifierMixin, _ChordMLP):
    """A network for classification, fitted by :func:`chordflow.fit`: a drop-in for ``MLPClassifier`` of scikit-learn.

    Minimises the mean cross-entropy of softmax outputs, weighted, + ½ alpha |θ|²/Σ wₙ by generalised Gauss–Newton
    steps. With alpha = 0 the logits of separable data grow without bound (one-hot labels have no equilibrium).
    Where ``y`` has several labels per sample, (N, Q) of 0 and 1, it is the sum of Q cross-entropies of logistic
    outputs, as for ``MLPClassifier``.
    Parameters and attributes as for :class:`ChordRegressor`, and ``classes_``.

    Examples
    --------
    >>> import numpy as np, chordflow as cf
    >>> X = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    >>> model = cf.sklearn.ChordClassifier((5,), random_state=0).fit(X, ["low", "low", "high", "high"])
    >>> model.predict([[-1.5], [1.5]]).tolist()
    ['low', 'high']
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "ChordClassifier":
        """Fit to ``X`` (N, d) and classes ``y`` (N,) or labels (N, Q); ``sample_weight`` (N,) as multiplicities."""
        self._check_options()
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True)
        y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        check_classification_targets(y)
        weights = _sample_weights(sample_weight, len(X))
        binarizer = LabelBinarizer().fit(y)
        if self.warm_start and hasattr(self, "classes_") and not np.array_equal(binarizer.classes_, self.classes_):
            raise ValueError(f"warm_start: fitted to the classes {self.classes_}, the new y has {binarizer.classes_}")
        self.classes_ = binarizer.classes_
        self._multilabel = binarizer.y_type_.startswith("multilabel")
        if len(self.classes_) < 2 and not self._multilabel:
            raise ValueError(f"ChordClassifier needs at least two classes, got one class: {self.classes_[0]!r}")
        labels = binarizer.transform(y).astype(np.float64)
        if labels.shape[1] == 1:
            labels = np.hstack([1 - labels, labels])
        self._fit_network(X, labels, weights, SEVERAL_LABELS if self._multilabel else CrossEntropy())
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (N, number of classes), columns in the order of ``classes_``."""
        outputs = self._outputs(X)
        # scikit-learn checks that probabilities of labels are below 1, as the logistic function is without rounding.
        return np.minimum(expit(outputs), np.nextafter(1, 0)) if self._multilabel else softmax(outputs, axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of :meth:`predict_proba`, exact where probabilities underflow."""
        outputs = self._outputs(X)
        return log_expit(outputs) if self._multilabel else log_softmax(outputs, axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, or its labels of probability above ½."""
        outputs = self._outputs(X)
        return (outputs > 0).astype(int) if self._multilabel else self.classes_[np.argmax(outputs, axis=1)]
