"""The data of the benchmark of fits. What comes with no package is read from a folder, and never downloaded."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_diabetes, load_digits

import chordflow as cf

CALIFORNIA = """python -c "from sklearn.datasets import fetch_california_housing as f; \
f(as_frame=True).frame.to_csv('california_housing.csv', index=False)\""""
MNIST = (
    "download train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
    "t10k-labels-idx1-ubyte.gz of https://ossci-datasets.s3.amazonaws.com/mnist/ into it"
)


def located(folder, name, recipe):
    """A path in the data folder, or one line that says how to get it."""
    if folder is None:
        raise ValueError(f"{name}: give --data or set CHORDFLOW_DATA to a folder that has it; to make it: {recipe}")
    path = Path(folder).expanduser() / name
    if not path.exists():
        raise ValueError(f"{path} is not there: expected {name} in --data or CHORDFLOW_DATA; to make it: {recipe}")
    return path


def diabetes():
    """442 samples, 10 features, one target."""
    inputs, targets = load_diabetes(return_X_y=True, scaled=False)
    return np.asarray(inputs), np.asarray(targets)[:, None]


def california(folder, num=1000):
    """The first 1000 rows, 8 features, median house value."""
    path = located(folder, "california_housing.csv", CALIFORNIA)
    table = np.loadtxt(path, delimiter=",", skiprows=1, max_rows=num, ndmin=2)
    return table[:, :-1], table[:, -1:]


def digits():
    """1797 images of 8×8, pixels/16; labels 0–9."""
    inputs, labels = load_digits(return_X_y=True)
    return inputs / 16, labels


def mnist(folder, num):
    """``num`` training images and the 10 000 test images, pixels/255, flat; one-hot labels."""
    path = located(folder, "mnist", MNIST)
    data = cf.data.load("idx", path=str(path), samples=num, seed=0, max_test=10_000)
    flat = (images.reshape(len(images), -1) for images in (data.inputs, data.test_inputs))
    return (*flat, data.targets, data.test_targets)
