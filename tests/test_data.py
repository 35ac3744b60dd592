"""Data sets: every source against the files and arrays it came from, and every mistake in one line."""

import dataclasses
import gzip
import struct
import subprocess
import sys

import numpy as np
import pytest
import sklearn.datasets

from chordflow import data

ROWS = 24
BUNDLED = {name: getattr(sklearn.datasets, f"load_{name}") for name in ("digits", "diabetes", "wine", "breast_cancer")}


def write_idx(path, array):
    """An IDX file written by its definition: two zero bytes, type 8, number of dimensions, sizes, bytes."""
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One file of each kind, all rows distinct."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ROWS, 4))
    (root / "table.csv").write_text("a,b,c,target\n" + "\n".join(",".join(map(repr, row.tolist())) for row in table))
    np.savez(root / "arrays.npz", inputs=table[:, :3].reshape(ROWS, 3, 1), targets=table[:, 3:])
    images = rng.integers(0, 256, (ROWS, 3, 2))
    write_idx(root / "train-images-idx3-ubyte.gz", images)
    write_idx(root / "train-labels-idx1-ubyte", np.arange(ROWS) % 4)
    return root


@pytest.fixture(scope="module")
def requests(folder):
    return {
        "digits": {},
        "diabetes": {},
        "wine": {},
        "breast_cancer": {},
        "csv": {"path": folder / "table.csv"},
        "npz": {"path": folder / "arrays.npz"},
        "idx": {"path": folder},
    }


def test_battery_covers_every_source(requests):
    assert list(requests) == list(data.SOURCES)


def rows_of(inputs, targets):
    return sorted(np.column_stack([inputs.reshape(len(inputs), -1), targets]).tolist())


@pytest.mark.parametrize("name", data.SOURCES)
def test_parts_are_disjoint_complete_and_determined_by_the_seed(name, requests):
    def load(**options):
        return data.load(name, standardise=False, max_test=10**6, **requests[name], **options)

    everything = load()
    part, again, other, larger = load(samples=10), load(samples=10), load(samples=10, seed=1), load(samples=15)

    assert part.inputs.shape == (10, *everything.input_shape)
    assert part.targets.shape == (10, everything.num_outputs)
    for array in (part.inputs, part.targets, part.test_inputs, part.test_targets):
        assert array.dtype == np.float64
    np.testing.assert_array_equal(part.inputs, again.inputs)
    np.testing.assert_array_equal(part.test_targets, again.test_targets)
    np.testing.assert_array_equal(part.inputs, larger.inputs[:10])
    assert not np.array_equal(part.inputs, other.inputs)

    assert everything.test_inputs.shape == (0, *everything.input_shape)
    assert everything.test_targets.shape == (0, everything.num_outputs)
    both = rows_of(part.inputs, part.targets) + rows_of(part.test_inputs, part.test_targets)
    assert sorted(both) == rows_of(everything.inputs, everything.targets)


@pytest.mark.parametrize("name", data.SOURCES)
def test_task_classes_and_targets_agree(name, requests):
    loaded = data.load(name, samples=20, **requests[name])
    assert (loaded.task == "classification") == bool(loaded.class_names)
    if loaded.task == "classification":
        assert len(loaded.class_names) == loaded.num_outputs
        assert set(np.unique(loaded.targets)) == {0.0, 1.0}
        np.testing.assert_array_equal(loaded.targets.sum(axis=1), 1)
        smooth = data.load(name, samples=20, smoothing=0.25, **requests[name])
        np.testing.assert_array_equal(smooth.inputs, loaded.inputs)
        q = loaded.num_outputs
        for labels, one_hot in ((smooth.targets, loaded.targets), (smooth.test_targets, loaded.test_targets)):
            np.testing.assert_allclose(labels[one_hot == 1], 0.75 + 0.25 / q, rtol=1e-15)
            np.testing.assert_allclose(labels[one_hot == 0], 0.25 / q, rtol=1e-15)
    else:
        with pytest.raises(ValueError, match=r"^data.smoothing = 0.1: .* is a regression"):
            data.load(name, smoothing=0.1, **requests[name])


def in_units(scaling, values):
    assert scaling is not None
    return scaling.invert(values)


@pytest.mark.parametrize("name", data.SOURCES)
def test_standardisation_is_fitted_on_the_training_part_alone(name, requests):
    plain = data.load(name, samples=20, standardise=False, **requests[name])
    scaled = data.load(name, samples=20, standardise=True, **requests[name])
    assert plain.input_scaling is plain.target_scaling is None

    varying = np.ptp(plain.inputs, axis=0) > 0
    np.testing.assert_allclose(scaled.inputs.mean(axis=0), 0, atol=1e-13)
    np.testing.assert_allclose(scaled.inputs.std(axis=0)[varying], 1, rtol=1e-13)
    np.testing.assert_array_equal(scaled.inputs[:, ~varying], 0)
    recovered = in_units(scaled.input_scaling, scaled.test_inputs)
    np.testing.assert_allclose(recovered, plain.test_inputs, rtol=1e-12, atol=1e-12)
    # The held-out part shows that it took no part in the fit.
    assert np.abs(scaled.test_inputs.mean(axis=0)).max() > 1e-3

    if plain.task == "regression":
        np.testing.assert_allclose(scaled.targets.std(axis=0), 1, rtol=1e-13)
        np.testing.assert_allclose(in_units(scaled.target_scaling, scaled.targets), plain.targets, rtol=1e-12)
    else:
        assert scaled.target_scaling is None
        np.testing.assert_array_equal(scaled.targets, plain.targets)


def test_defaults_say_which_sources_are_standardised(requests):
    scaled = {name for name in data.SOURCES if data.load(name, samples=20, **requests[name]).input_scaling is not None}
    assert scaled == {"diabetes", "wine", "breast_cancer", "csv"}


@pytest.mark.parametrize(("name", "divisor"), [("digits", 16), ("wine", 1), ("breast_cancer", 1)])
def test_bundled_inputs_keep_their_labels(name, divisor):
    bunch = BUNDLED[name]()
    label_of = {row.tobytes(): label for row, label in zip(bunch.data / divisor, bunch.target, strict=True)}
    loaded = data.load(name, samples=100, standardise=False, max_test=10**6)
    assert len(loaded.inputs) + len(loaded.test_inputs) == len(bunch.data)
    assert loaded.class_names == tuple(map(str, bunch.target_names))
    for inputs, targets in ((loaded.inputs, loaded.targets), (loaded.test_inputs, loaded.test_targets)):
        assert [label_of[row.tobytes()] for row in inputs] == targets.argmax(axis=1).tolist()


def test_diabetes_in_its_own_units():
    raw = BUNDLED["diabetes"](scaled=False)
    loaded = data.load("diabetes", samples=100)
    target_of = {row.tobytes(): target for row, target in zip(raw.data.round(6), raw.target, strict=True)}
    inputs = in_units(loaded.input_scaling, loaded.inputs).round(6)
    expected = [target_of[row.tobytes()] for row in inputs]
    np.testing.assert_allclose(in_units(loaded.target_scaling, loaded.targets)[:, 0], expected, rtol=1e-12)


def test_held_out_part_is_capped():
    assert len(data.load("digits", samples=100).test_inputs) == 1000
    few, many = data.load("digits", samples=100, max_test=7), data.load("digits", samples=100)
    np.testing.assert_array_equal(few.test_inputs, many.test_inputs[:7])
    assert data.load("digits", samples=100, max_test=0).test_targets.shape == (0, 10)


def test_constant_feature_is_shifted_and_not_blown_up(tmp_path):
    # The mean of eleven times 0.1 differs from 0.1 by rounding; a division by the deviation of that would give size 1.
    file = tmp_path / "constant.csv"
    file.write_text("".join(f"0.1,{i},{i * i}\n" for i in range(11)))
    assert (np.full((11, 2), 0.1).std(axis=0) > 0).all()
    loaded = data.load("csv", path=file)
    np.testing.assert_array_equal(loaded.inputs[:, 0], 0)
    assert in_units(loaded.input_scaling, np.ones((1, 2)))[0, 0] == 1.1
    one = data.load("csv", path=file, samples=1)
    np.testing.assert_array_equal(one.inputs, 0)
    np.testing.assert_array_equal(one.targets, 0)


def test_dataset_is_frozen():
    loaded = data.load("wine")
    for field in dataclasses.fields(loaded):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(loaded, field.name, None)


# Files.


def unscaled_csv(tmp_path, text, **options):
    file = tmp_path / "t.csv"
    file.write_text(text, encoding="utf-8")
    loaded = data.load("csv", path=str(file), standardise=False, **options)
    order = np.argsort(loaded.inputs[:, 0])
    return loaded.inputs[order], loaded.targets[order], loaded.class_names


@pytest.mark.parametrize(
    ("text", "options", "inputs", "targets"),
    [
        ("1,2,3\n4,5,6\n", {}, [[1, 2], [4, 5]], [[3], [6]]),
        ("a,b,c\n1,2,3\n4,5,6", {}, [[1, 2], [4, 5]], [[3], [6]]),
        ("\ufeffa,b,c\r\n1,2,3\r\n\r\n4,5,6\r\n", {"target": "a"}, [[2, 3], [5, 6]], [[1], [4]]),
        ('a,"b, in m",c\n1, 2 ,3e0\n4,+5,.6e1\n', {"target": "b, in m"}, [[1, 3], [4, 6]], [[2], [5]]),
        ("1,2,3\n4,5,6\n", {"target": 0}, [[2, 3], [5, 6]], [[1], [4]]),
        ("1,2,3\n4,5,6\n", {"target": [-1, 0]}, [[2], [5]], [[3, 1], [6, 4]]),
        ("a,b,c\n1,2,3\n4,5,6\n", {"target": ("c", 1)}, [[1], [4]], [[3, 2], [6, 5]]),
    ],
)
def test_csv_columns(tmp_path, text, options, inputs, targets):
    got_inputs, got_targets, names = unscaled_csv(tmp_path, text, **options)
    np.testing.assert_array_equal(got_inputs, inputs)
    np.testing.assert_array_equal(got_targets, targets)
    assert names == ()


@pytest.mark.parametrize(
    ("labels", "names", "index"),
    [
        (["10", "9", "10"], ("9", "10"), [1, 0, 1]),
        (["1.0", "1", "-2"], ("-2", "1"), [1, 1, 0]),
        (["setosa", " virginica", "setosa "], ("setosa", "virginica"), [0, 1, 0]),
        (["1", "2", "other"], ("1", "2", "other"), [0, 1, 2]),
    ],
)
def test_csv_classes(tmp_path, labels, names, index):
    text = "".join(f"{i},{label}\n" for i, label in enumerate(labels))
    _, targets, got = unscaled_csv(tmp_path, text, task="classification")
    assert got == names
    np.testing.assert_array_equal(targets, np.eye(len(names))[index])


def test_npz_keys_vectors_and_other_arrays(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, x=np.arange(5), y=np.arange(5, dtype=np.float32) / 2, note=np.array({"any": "object"}, dtype=object))
    loaded = data.load("npz", path=file)
    assert loaded.inputs.shape == loaded.targets.shape == (5, 1)
    np.testing.assert_array_equal(loaded.targets, loaded.inputs / 2)


def test_npz_held_out_part(tmp_path):
    file = tmp_path / "a.npz"
    inputs, test_inputs = np.arange(5.0), np.arange(10.0, 13.0)
    np.savez(file, inputs=inputs, targets=-inputs, test_inputs=test_inputs, test_targets=-test_inputs)
    loaded = data.load("npz", path=file, samples=2)
    assert loaded.inputs.max() < 5
    assert sorted(loaded.test_inputs[:, 0]) == [10, 11, 12]
    np.testing.assert_array_equal(loaded.test_targets, -loaded.test_inputs)
    with pytest.raises(ValueError, match=r"^data.samples = 6: npz has 5 samples, expected an integer from 1 to 5"):
        data.load("npz", path=file, samples=6)


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (np.array([3, 1, 3]), ("1", "3"), [[0, 1], [1, 0], [0, 1]]),
        (np.array([[3.0], [1.0], [3.0]]), ("1", "3"), [[0, 1], [1, 0], [0, 1]]),
        (np.array(["b", "a", "b"]), ("a", "b"), [[0, 1], [1, 0], [0, 1]]),
        (np.array([True, False, True]), ("0", "1"), [[0, 1], [1, 0], [0, 1]]),
        (np.array([[0.2, 0.8], [1, 0], [0.5, 0.5]]), ("0", "1"), [[0.2, 0.8], [1, 0], [0.5, 0.5]]),
    ],
)
def test_npz_classes(tmp_path, labels, names, expected):
    np.savez(tmp_path / "a.npz", inputs=np.arange(3), targets=labels)
    loaded = data.load("npz", path=tmp_path / "a.npz", task="classification")
    assert loaded.class_names == names
    np.testing.assert_array_equal(loaded.targets[np.argsort(loaded.inputs[:, 0])], expected)


@pytest.mark.parametrize("joint", ["-", "."])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_folder_with_its_own_held_out_part(tmp_path, joint, end):
    rng = np.random.default_rng(3)
    parts = {}
    for part, count in (("train", 9), ("t10k", 4)):
        images, labels = rng.integers(0, 256, (count, 2, 3)), np.arange(count) % 3
        parts[part] = {image.astype(np.uint8).tobytes(): label for image, label in zip(images, labels, strict=True)}
        write_idx(tmp_path / f"{part}-images{joint}idx3-ubyte{end}", images)
        write_idx(tmp_path / f"{part}-labels{joint}idx1-ubyte{end}", labels)
    loaded = data.load("idx", path=tmp_path)
    for part, inputs, targets in (
        ("train", loaded.inputs, loaded.targets),
        ("t10k", loaded.test_inputs, loaded.test_targets),
    ):
        assert inputs.shape == (len(parts[part]), 2, 3)
        pixels = np.round(inputs * 255).astype(np.uint8)
        np.testing.assert_array_equal(inputs, pixels / 255)
        assert [parts[part][image.tobytes()] for image in pixels] == targets.argmax(axis=1).tolist()


def test_idx_pair_of_files(folder):
    pair = [folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte"]
    np.testing.assert_array_equal(
        data.load("idx", path=pair, samples=5).inputs, data.load("idx", path=folder, samples=5).inputs
    )


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r'^bundled data sets need sklearn.datasets: pip install "chordflow\[run\]"$'):
        data.load("digits")


def test_files_do_not_need_scikit_learn(folder):
    code = (
        "import sys; from chordflow.data import load; "
        f"load('csv', path={str(folder / 'table.csv')!r}); assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
