"""Run folders: what is written is read back to the bit, and damage is told in one line."""

import json
import math
import os
import subprocess
import sys
import tomllib

import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from chordflow.extras import MissingExtraError
from chordflow.files import replacing
from chordflow.record import FORMAT, RunError, create, open_run, to_toml

SEED = 20240802

CONFIG = {
    "rtol": 1e-8,
    "flows": ["straight", "adapted"],
    "data": {"name": "digits", "samples": 200, "standardise": False, "split": {"seed": 3}},
    "model": {"widths": [64, 64], "activation": "tanh"},
}


def numbers(seed: int = SEED) -> xarray.Dataset:
    rng = np.random.default_rng(seed)
    return xarray.Dataset(
        {
            "outputs": (("t", "output"), rng.normal(size=(4, 3)) * 10.0 ** rng.integers(-300, 300, size=(4, 3))),
            "small": ("t", rng.normal(size=4).astype(np.float32)),
            "accepted": ("t", np.array([True, False, True, True])),
            "seconds": ("t", rng.uniform(size=4)),
        },
        coords={"t": np.linspace(0.0, 1.0, 4), "output": ["α", "b", "c"]},
        attrs={"flow": "straight", "lam": 1e-12, "steps": 103, "widths": [64, 64]},
    )


@pytest.fixture
def run(tmp_path):
    return create(tmp_path / "runs" / "first", CONFIG)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The message, which must be one line without a trailing newline."""
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


# Configuration -------------------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"])),
)
keys = st.text("ab.\"' é\n", max_size=4)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner), max_leaves=8)
configs = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), values, max_size=4)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(configs)
def test_toml_comes_back_unchanged(config):
    # repr, since NaN differs from itself; it also tells 1 from True and 0.0 from -0.0.
    assert sorted_repr(tomllib.loads(to_toml(config))) == sorted_repr(config)


def sorted_repr(value):
    """Tables compared without their order: scalars move before inner tables."""
    if isinstance(value, dict):
        return sorted((key, sorted_repr(item)) for key, item in value.items())
    return [sorted_repr(item) for item in value] if isinstance(value, list) else repr(value)


def test_toml_reads_well():
    assert to_toml(CONFIG) == (
        'rtol = 1e-08\nflows = ["straight", "adapted"]\n\n[data]\nname = "digits"\nsamples = 200\nstandardise = false\n'
        '\n[data.split]\nseed = 3\n\n[model]\nwidths = [64, 64]\nactivation = "tanh"\n'
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"data": {"seed": None}}, r"data\.seed: .*NoneType"),
        ({"a": [np.arange(3)]}, r"config key a: .*ndarray"),
        ({"a": {1: 2}}, "keys are strings, got 1"),
        ({"a": "\ud800"}, "not valid Unicode"),
    ],
)
def test_what_toml_cannot_hold_is_refused_and_makes_nothing(config, message, tmp_path):
    with pytest.raises(RunError, match=message) as error:
        create(tmp_path / "run", config)
    one_line(error)
    assert not (tmp_path / "run").exists()


def test_numpy_floats_in_a_config_are_plain_numbers():
    assert tomllib.loads(to_toml({"rtol": np.float64(0.1)})) == {"rtol": 0.1}


# Folder --------------------------------------------------------------------------------------------------------------


def test_a_new_run_opens_before_anything_is_written_into_it(run):
    assert open_run(str(run.path)) == run
    assert run.config == CONFIG
    assert (run.summary, run.datasets) == ({}, ())


def test_an_empty_folder_is_accepted(tmp_path):
    assert create(tmp_path, CONFIG).config == CONFIG


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert create("~/run", CONFIG).path == tmp_path / "run"
    assert open_run("~/run").config == CONFIG


def test_a_taken_folder_is_refused_and_keeps_its_files(tmp_path):
    (tmp_path / "precious").write_text("data")
    with pytest.raises(RunError, match=r"exists and is not empty: give another path") as error:
        create(tmp_path, CONFIG)
    one_line(error)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]
    assert (tmp_path / "precious").read_text() == "data"


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_of_two_that_make_one_folder_at_once_one_is_refused(tmp_path, monkeypatch, links):
    def while_another(source, target):
        monkeypatch.undo()
        if links:
            create(tmp_path, {"seed": 1})
            os.link(source, target)
        raise PermissionError("there are no links on this disk")

    monkeypatch.setattr(os, "link", while_another)
    if links:
        with pytest.raises(RunError, match=r"exists and is not empty: .*resume"):
            create(tmp_path, {"seed": 2})
        assert open_run(tmp_path).config == {"seed": 1}
    else:
        assert create(tmp_path, {"seed": 2}).config == {"seed": 2}


def test_paths_that_cannot_be_folders_are_refused(tmp_path):
    # Root may write anywhere, so the refusals here do not rest on permissions.
    taken = tmp_path / "file"
    taken.write_text("data")
    for path, message in [
        (taken, "is a file"),
        (taken / "run", r"cannot be written \(Not a directory\)"),
        (tmp_path / ("x" * 300), r"cannot be written \(File name too long\)"),
    ]:
        with pytest.raises(RunError, match=message) as error:
            create(path, CONFIG)
        one_line(error)
    assert taken.read_text() == "data"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot be written"):
        create(tmp_path / "run", CONFIG)
    tmp_path.chmod(0o700)


def test_what_is_no_run_folder_is_told_apart(tmp_path):
    (tmp_path / "file").write_text("")
    for path, message in [
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "file", "is not a folder"),
        (tmp_path, r"has no config\.toml"),
    ]:
        with pytest.raises(RunError, match=message) as error:
            open_run(path)
        one_line(error)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.toml", b"rtol = "),
        ("config.toml", b"\xff\xfe"),
        ("summary.json", b""),
        ("summary.json", b'{"format": 1, "cost": 1.0'),
        ("summary.json", b'{"format": 1, "cost": NaN}'),
        ("summary.json", b'{"format": 1, "cost": {"float": "much"}}'),
        ("summary.json", b'{"format": 1, "cost": {"float": []}}'),
        ("summary.json", b"[1]"),
        ("summary.json", b"[" * 100_000),
        ("summary.json", b'{"cost": 1.0}'),
        ("summary.json", b'{"format": true}'),
    ],
)
def test_damage_is_told_in_one_line_naming_the_file(run, name, content):
    (run.path / name).write_bytes(content)
    with pytest.raises(RunError, match=rf"{name} is .*damaged.* run again") as error:
        open_run(run.path)
    one_line(error)


def test_a_newer_format_asks_for_an_upgrade(run):
    (run.path / "summary.json").write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(RunError, match="upgrade chordflow"):
        open_run(run.path)


# Summary -------------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.floats(), min_size=1))
def test_floats_in_a_summary_keep_every_bit(tmp_path_factory, floats):
    run = create(tmp_path_factory.mktemp("run"), {})
    run.write_summary({"inner": {"floats": floats}})
    back = np.asarray(run.summary["inner"]["floats"])
    # NaN carries no payload in text; all else, signed zeros and denormals too, is compared as bits.
    is_nan = np.isnan(floats)
    np.testing.assert_array_equal(np.isnan(back), is_nan)
    np.testing.assert_array_equal(back[~is_nan].view(np.uint64), np.asarray(floats)[~is_nan].view(np.uint64))


def test_a_summary_is_strict_json_with_infinities_spelt_out(run):
    run.write_summary({"rate": math.inf, "result": "successful", "none": None, "all": (1, True)})

    def refuse(word):
        raise AssertionError(word)

    stored = json.loads((run.path / "summary.json").read_text(), parse_constant=refuse)
    assert stored.pop("format") == FORMAT
    assert stored == {"rate": {"float": "inf"}, "result": "successful", "none": None, "all": [1, True]}
    assert run.summary == {"rate": math.inf, "result": "successful", "none": None, "all": [1, True]}


def test_scalars_of_numpy_and_jax_become_numbers(run):
    third = jnp.asarray(1 / 3, jnp.float32)
    run.write_summary({"a": np.float64(0.1), "b": third, "c": np.int64(3), "d": np.bool_(True), "e": np.array(np.inf)})
    assert run.summary == {"a": 0.1, "b": float(third), "c": 3, "d": True, "e": math.inf}


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ({"outputs": np.zeros(3)}, "summary key outputs: .*ndarray.*dataset"),
        ({"a": {"b": [1, 2j]}}, r"summary key a\.b\[1\]: .*complex"),
        ({"a": {1: 2}}, "keys are strings, got 1"),
        ({"a": {"float": 1.0}}, "'float' is taken"),
        ({"format": 7}, "'format' is taken"),
    ],
)
def test_a_refused_summary_leaves_the_old_one(run, summary, message):
    run.write_summary({"cost": 1.0})
    with pytest.raises(RunError, match=message) as error:
        run.write_summary(summary)
    one_line(error)
    assert run.summary == {"cost": 1.0}


# Datasets ------------------------------------------------------------------------------------------------------------


def test_datasets_come_back_identical_and_open_at_the_root(run):
    run.write_dataset("straight", numbers())
    run.write_dataset("adapted_2.5", numbers(SEED + 1))
    assert run.datasets == ("adapted_2.5", "straight")
    assert run.dataset("straight").identical(numbers())
    assert not run.dataset("adapted_2.5").identical(numbers())
    with xarray.open_dataset(run.path / "straight.nc") as opened:
        assert opened.identical(numbers())
        assert {k: v.dtype for k, v in opened.variables.items()} == {k: v.dtype for k, v in numbers().variables.items()}


def test_equal_datasets_are_equal_bytes(run):
    run.write_dataset("a", numbers())
    run.write_dataset("b", numbers())
    run.write_dataset("c", numbers().assign(seconds=("t", np.ones(4))))
    first, second, third = ((run.path / f"{name}.nc").read_bytes() for name in "abc")
    assert first == second != third


def test_a_dataset_that_is_open_elsewhere_can_be_replaced(run):
    run.write_dataset("straight", numbers())
    with xarray.open_dataset(run.path / "straight.nc") as old:
        run.write_dataset("straight", numbers(SEED + 1))
        assert old.load().identical(numbers())
    again = run.dataset("straight")
    assert again.identical(numbers(SEED + 1))
    run.write_dataset("straight", again)  # what was read, with NumPy's types in its attributes, can be written


def saved_params():
    """As a trajectory writes them: a leaf of ({"w": ..., "b": ...}, {"w": ...}) each, over two saves."""
    rng = np.random.default_rng(SEED)
    tree = ({"w": rng.normal(size=(2, 3)), "b": rng.normal(size=2)}, {"w": rng.normal(size=(2, 1))})
    leaves = {
        f"params_{i}_{k}": (
            ("time", *(f"{i}_{k}_{d}" for d in range(leaf.ndim - 1))),
            leaf,
            {"tree_path": f'[{i}, "{k}"]'},
        )
        for i, layer in enumerate(tree)
        for k, leaf in layer.items()
    }
    for leaf in leaves.values():
        leaf[2]["quantity"] = "params"
    # A quantity of the user's own that looks alike.
    leaves["params_norm"] = (("time",), np.ones(2), {"quantity": "params_norm", "tree_path": '["x"]'})
    return tree, xarray.Dataset(leaves, coords={"time": [0.0, 1.0]})


def test_parameters_come_back_as_a_tree(run):
    tree, dataset = saved_params()
    run.write_dataset("interpolated-0.5", dataset)
    for save in (0, -1):
        found = run.params("interpolated(0.5)", save=save)
        assert isinstance(found, tuple)
        assert [sorted(layer) for layer in found] == [["b", "w"], ["w"]]
        for layer, expected in zip(found, tree, strict=True):
            for key in layer:
                np.testing.assert_array_equal(layer[key], expected[key][save])
    like = [{"w": np.zeros(3), "b": jnp.zeros(()), "name": "first"}, {"w": np.zeros(1)}]
    filled = run.params(like=like)
    assert isinstance(filled, list)
    assert filled[0]["name"] == "first"
    np.testing.assert_array_equal(filled[0]["w"], tree[0]["w"][1])
    for wrong, got in (({"w": np.zeros(3)}, "none there"), ([{"w": np.zeros(4)}], r"one of shape \(3,\)")):
        with pytest.raises(RunError, match=got) as error:
            run.params(like=wrong)
        one_line(error)


def test_one_array_of_parameters_is_that_array(run):
    run.write_dataset("straight", xarray.Dataset({"params": (("time", "k"), np.arange(6.0).reshape(2, 3))}))
    np.testing.assert_array_equal(run.params(), [3.0, 4.0, 5.0])


def test_the_flow_may_be_left_out_where_there_is_one(run):
    with pytest.raises(RunError, match="has the flows none yet: name one of them"):
        run.trajectory()
    run.write_dataset("straight", numbers())
    xarray.testing.assert_identical(run.trajectory(), run.trajectory("straight"))
    with pytest.raises(RunError, match="has no parameters for this flow, only outputs, small") as error:
        run.params()
    one_line(error)
    run.write_dataset("adapted", numbers())
    run.write_summary({"flows": {"straight": {"result": "successful"}, "adapted": {"result": "step_limit"}}})
    with pytest.raises(RunError, match="has the flows straight, adapted: name one of them"):
        run.trajectory()


def test_metrics_are_the_summary_by_quantity(run):
    assert (run.metrics, run.flows) == ({}, ())
    rows = [{"quantity": "cost at the end", "predicted": None, "measured": 1e-16}]
    run.write_summary({"flows": {"straight": {"result": "successful", "stats": {"lam": 0.5}, "comparison": rows}}})
    assert run.metrics == {
        "straight": {"result": "successful", "lam": 0.5, "cost at the end": {"predicted": None, "measured": 1e-16}}
    }


def test_a_missing_dataset_names_those_that_are_there(run):
    with pytest.raises(RunError, match="'straight'; there are: none yet"):
        run.dataset("straight")
    run.write_dataset("adapted", numbers())
    with pytest.raises(RunError, match="'straight'; there are: adapted"):
        run.dataset("straight")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../a", "straight flow", "a\n"])
def test_names_that_are_no_file_names_are_refused(run, name):
    with pytest.raises(RunError, match="dataset name") as error:
        run.write_dataset(name, numbers())
    one_line(error)
    assert run.datasets == ()


@pytest.mark.parametrize("value", [True, None, {"a": 1}, np.bool_(True), 1j])
def test_attributes_that_netcdf_cannot_hold_are_refused(run, value):
    for dataset, key in [(numbers().assign_attrs(a=value), "a"), (numbers(), "small.a")]:
        if key != "a":
            dataset.small.attrs["a"] = value
        with pytest.raises(RunError, match=f"attribute {key} is a .*expected text or a number") as error:
            run.write_dataset("straight", dataset)
        one_line(error)
    assert run.datasets == ()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_dataset_is_told_in_one_line(run, share):
    run.write_dataset("straight", numbers())
    path = run.path / "straight.nc"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RunError, match=r"straight\.nc is truncated or damaged.*run again") as error:
        open_run(run.path).dataset("straight")
    one_line(error)


def test_overwritten_numbers_fail_their_checksum(run):
    run.write_dataset("straight", numbers())
    path = run.path / "straight.nc"
    whole = path.read_bytes()
    start = whole.index(numbers().outputs.values.tobytes())
    path.write_bytes(whole[:start] + bytes([whole[start] ^ 1]) + whole[start + 1 :])
    with pytest.raises(RunError, match=r"straight\.nc is truncated or damaged \(another SHA-256 sum"):
        run.dataset("straight")
    (run.path / "SHA256SUMS").unlink()  # HDF5 has sums of its own
    with pytest.raises(RunError, match=r"straight\.nc is truncated or damaged.*filter returned failure"):
        run.dataset("straight")


def test_overwritten_bytes_anywhere_never_end_as_a_traceback(run):
    """Damage shows as the one-line error, or lies in bytes that do not matter or have no checksum (text, padding)."""
    run.write_dataset("straight", numbers())
    path = run.path / "straight.nc"
    whole = path.read_bytes()
    messages = []
    for start in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:start] + b"\xa5" * 64 + whole[start + 64 :])
        try:
            run.dataset("straight")
        except RunError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert not [text for text in messages if "\n" in text]


@pytest.mark.parametrize("missing", ["xarray", "h5netcdf", "h5py"])
def test_a_missing_package_names_the_extra(run, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)  # makes `import` raise, as if it were not installed
    message = r'pip install "chordflow\[run\]"'
    with pytest.raises(MissingExtraError, match=message) as error:
        run.write_dataset("straight", numbers())
    one_line(error)
    (run.path / "straight.nc").touch()
    with pytest.raises(ImportError, match=message):
        run.dataset("straight")


# Whole files ---------------------------------------------------------------------------------------------------------


def test_a_failure_while_writing_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_beside_a_writer_sees_whole_files_only(run):
    """A second process rewrites the summary as fast as it can; each read must parse and be one of its states."""
    writer = (
        "import sys; from pathlib import Path; from chordflow.record import Run\n"
        "for i in range(10**9): Run(Path(sys.argv[1])).write_summary({'i': i, 'rows': [i] * 2000})"
    )
    with subprocess.Popen([sys.executable, "-c", writer, str(run.path)]) as process:
        try:
            seen = set()
            while len(seen) < 20:
                assert process.poll() is None
                summary = run.summary
                if summary:
                    assert set(summary["rows"]) == {summary["i"]}
                    seen.add(summary["i"])
        finally:
            process.kill()
