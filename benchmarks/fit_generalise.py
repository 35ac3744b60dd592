"""Test error of `cf.sklearn`'s estimators beside scikit-learn's, and of `cf.optim.adapted` beside Adam on MNIST.

Nothing is chosen on test data. Each method runs with alpha = 1e-4, the default of both, and on data of one target also
with one of ALPHAS, every second decade, that it chose on a fifth of the training part, the same for all; early
stopping takes another fifth, drawn by each itself.
"""

import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from fit_data import california, diabetes, digits
from fit_data import mnist as load_mnist
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, ShuffleSplit, train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler

import chordflow as cf

ALPHAS = (1e-4, 1e-2, 1.0, 100.0)
STOP = {"early_stopping": True, "validation_fraction": 0.2}


def test_errors(args):
    """Mean and standard error over splits; training parts of 80 %, 250 images for digits, validation in them."""
    splits, hidden = (2, (4,)) if args.smoke else (10, (64, 64))
    x, labels = digits()
    sets: dict[str, Any] = {"diabetes": (*diabetes(), "regression", 0.8)}
    if args.data or not args.smoke:
        sets["california"] = (*california(args.data), "regression", 0.8)
    few = 150 if args.smoke else 250
    sets["digits classification"] = (x, labels, "classification", few)
    sets["digits regression"] = (x, np.eye(10)[labels], "regression", few)
    wanted = {name: values for name, values in sets.items() if not args.sets or name in args.sets}
    return [one_set(name, *values, splits=splits, hidden=hidden) for name, values in wanted.items()]


def one_set(name, inputs, targets, task, train_size, *, splits, hidden):
    """Every method on the same splits of one data set."""
    errors, seconds, alphas = {}, {}, {}
    for split in range(splits):
        stratify = targets if task == "classification" else None
        options: dict[str, Any] = {"train_size": train_size, "random_state": split, "stratify": stratify}
        parts = [np.asarray(part) for part in train_test_split(inputs, targets, **options)]
        x, x_test = standardise(parts[0], parts[1])
        y, y_test = parts[2], parts[3]
        is_column = task == "regression" and y.shape[1] == 1
        if is_column:  # one-hot columns keep their common scale
            y, y_test = standardise(y, y_test)
        for method, model in models(task, hidden, split, searches=is_column).items():
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(x, np.asarray(y).ravel() if is_column else y)
            if isinstance(model, GridSearchCV):
                alphas.setdefault(method, []).append(model.best_params_["alpha"])
            seconds.setdefault(method, []).append(time.perf_counter() - start)
            errors.setdefault(method, []).append(error_of(model, x_test, y_test, task))
        print(name, split, {method: round(values[-1], 4) for method, values in errors.items()}, flush=True)
    return {
        "data": name,
        "task": task,
        "splits": splits,
        "train_size": train_size,
        "hidden": hidden,
        "alphas": alphas,
        **compared(errors, seconds),
    }


def standardise(train, test):
    """By the mean and deviation of the training part."""
    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(test)


def models(task, hidden, seed, *, searches):
    """Untrained estimators by name; with those that choose their alpha if it ``searches``."""
    same = {"activation": "tanh", "random_state": seed, "hidden_layer_sizes": hidden}
    theirs, ours = (
        (MLPRegressor, cf.sklearn.ChordRegressor)
        if task == "regression"
        else (MLPClassifier, cf.sklearn.ChordClassifier)
    )
    plain = {
        "chord": ours(**same, **STOP),
        "adam": theirs(**same, **STOP, solver="adam", max_iter=2000),
        "lbfgs": theirs(**same, solver="lbfgs", max_iter=2000),
    }
    once = ShuffleSplit(1, test_size=0.2, random_state=seed)
    searched = {
        f"{name}, alpha chosen": GridSearchCV(model, {"alpha": ALPHAS}, cv=once) for name, model in plain.items()
    }
    return plain | (searched if searches else {})


def error_of(model, inputs, targets, task):
    """Mean squared error, or the fraction misclassified."""
    if task == "classification":
        return float(1 - model.score(inputs, targets))
    return float(np.mean((model.predict(inputs).reshape(len(inputs), -1) - targets) ** 2))


def compared(errors, seconds):
    """Mean and standard error of each method, and whether ours is within one of the best."""
    table = {
        method: {
            "mean": float(np.mean(values)),
            "standard_error": float(np.std(values, ddof=1) / len(values) ** 0.5),
            "median_seconds": float(np.median(seconds[method])),
            "errors": values,
        }
        for method, values in errors.items()
    }
    verdicts = {}
    for ending in sorted({name.removeprefix("chord") for name in table if name.startswith("chord")}):
        ours, peers = f"chord{ending}", [f"adam{ending}", f"lbfgs{ending}"]
        best = min(peers, key=lambda method: table[method]["mean"])
        excess = table[ours]["mean"] - table[best]["mean"]
        within = bool(excess <= table[best]["standard_error"])
        verdicts[ours] = {"best_peer": best, "excess": excess, "within_one_standard_error": within}
    return {"methods": table, "verdicts": verdicts}


# --- MNIST ----------------------------------------------------------------------------------------------------


def mnist(args):
    """Test accuracy at the best validation point 784-64-10, cross-entropy, batches of 500.

    A fifth of the images is held out for validation; scikit-learn's own early stopping draws another fifth.
    """
    num, limit = (1000, 2.0) if args.smoke else (10_000, args.limit)
    x, x_test, y, y_test = load_mnist(args.data, num)
    model = cf.models.mlp((784, 64, 10), activation="tanh", seed=0)
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), model.params)
    # Of three settings tried for three minutes the one with the best validation accuracy.
    adapted = cf.optim.adapted(model.apply, cf.CrossEntropy(), learning_rate=0.5, damping=3e-2, momentum=0.8)
    runs = {"cf.optim.adapted": adapted} | {f"optax Adam {rate:g}": optax.adam(rate) for rate in (1e-3, 3e-3)}
    cut = 4 * num // 5
    parts = [tuple(jnp.asarray(a, jnp.float32) for a in part) for part in ((x[:cut], y[:cut]), (x[cut:], y[cut:]))]
    test = tuple(jnp.asarray(a, jnp.float32) for a in (x_test, y_test))
    results = {}
    for name, transform in runs.items():
        # Adam is at its best validation accuracy within a minute and overfits from there.
        seconds = limit if transform is adapted else min(limit, 120.0)
        results[name] = train(model.apply, transform, start, (*parts, test), seconds)
        print(name, {k: v for k, v in results[name].items() if k != "curve"}, flush=True)
    network = MLPClassifier((64,), activation="tanh", random_state=0, max_iter=500, **STOP)
    began = time.perf_counter()
    accuracy = network.fit(x, y.argmax(1)).score(x_test, y_test.argmax(1))
    results["MLPClassifier adam"] = {"accuracy": float(accuracy), "seconds": time.perf_counter() - began}
    best = max(result["accuracy"] for name, result in results.items() if name != "cf.optim.adapted")
    error = float(np.sqrt(best * (1 - best) / len(x_test)))
    excess = best - results["cf.optim.adapted"]["accuracy"]
    return {
        "samples": num,
        "batch": 500,
        "seconds": limit,
        "dtype": "float32",
        "methods": results,
        "standard_error_of_best_peer": error,
        "within_one_standard_error": bool(excess <= error),
    }


def train(apply, transform, params, data, limit):
    """Epochs until the time is up; accuracy on both other parts after each, outside the clock."""
    transform = optax.with_extra_args_support(transform)
    loss = cf.CrossEntropy()

    def mean_loss(params, x, y):
        return cf.Problem(apply, x, y, loss).cost(params)

    @jax.jit
    def step(params, state, x, y):
        grads = jax.grad(mean_loss)(params, x, y)
        updates, state = transform.update(grads, state, params, batch=(x, y))
        return optax.apply_updates(params, updates), state

    @jax.jit
    def accuracy(params, x, y):
        outputs = jax.vmap(lambda x: apply(params, x))(x)
        return jnp.mean(jnp.argmax(outputs, 1) == jnp.argmax(y, 1))

    (x, y), validation, test = data
    state, rng, elapsed, curve = transform.init(params), np.random.default_rng(0), 0.0, []
    batch = min(500, len(x))
    jax.block_until_ready(step(*step(params, state, x[:batch], y[:batch]), x[:batch], y[:batch]))
    while elapsed < limit:
        order = rng.permutation(len(x))[: len(x) // batch * batch]
        for rows in order.reshape(-1, batch):
            start = time.perf_counter()
            params, state = jax.block_until_ready(step(params, state, x[rows], y[rows]))
            elapsed += time.perf_counter() - start
            if elapsed > limit:
                break
        curve.append((elapsed, float(accuracy(params, *validation)), float(accuracy(params, *test))))
    best = max(curve, key=lambda point: point[1])
    return {
        "epochs": len(curve),
        "accuracy": best[2],
        "validation": best[1],
        "seconds_to_best": best[0],
        "curve": curve,
    }
