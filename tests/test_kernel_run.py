"""`chordflow gram`: the matrix it keeps against dense Jacobians, its spectrum, its labels, and its users' mistakes."""

import errno
import json

import numpy as np
import pytest
import xarray

import chordflow as cf
from chordflow import kernel_run
from chordflow.cli import main
from chordflow.config import load_config
from chordflow.files import naming
from chordflow.setting import Setting

SMALL = ["data.samples=6", "model.widths=12"]


def dense(words):
    """D of the same configuration, formed."""
    setting = Setting.build(load_config(None, words))
    return np.asarray(setting.problem().jacobian(setting.params).as_matrix())


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "gram"
    assert main(["gram", *SMALL, f"out={out}"]) == 0
    return out


def test_the_matrix_is_that_of_the_dense_jacobian(kept):
    data = xarray.open_dataset(kept / "gram.nc")
    D = dense(SMALL)
    assert data["gram"].dims == ("sample", "output", "other_sample", "other_output")
    G = data["gram"].values.reshape(60, 60)
    assert np.abs(G - D @ D.T).max() <= 1e-12 * np.abs(G).max()
    sigma = np.linalg.svd(D, compute_uv=False)
    # A Gram matrix squares the condition number.
    assert data["sigma"].values == pytest.approx(sigma, abs=60 * np.finfo(float).eps * sigma[0] ** 2 / sigma[-1])
    assert data.attrs["effective_dimension_low"] == pytest.approx(
        np.sum(sigma**2 / (sigma**2 + (1e-6 * sigma[0]) ** 2))
    )
    assert [v for v in map(str, data.variables) if "second" in v] == ["seconds"]


def test_entries_are_found_by_label_and_lie_in_chunks(kept):
    data = xarray.open_dataset(kept / "gram.nc")
    assert data["output"].values.tolist() == [str(digit) for digit in range(10)]
    entry = data["gram"].sel(sample=2, output="7", other_sample=5, other_output="1")
    assert float(entry) == pytest.approx((dense(SMALL) @ dense(SMALL).T)[27, 51], rel=1e-12)
    assert data["gram"].encoding["chunksizes"] == (6, 10, 6, 10)


def test_the_summary_names_the_rules_and_reads_back(kept):
    run = cf.open_run(kept)
    assert run.datasets == ("gram",)
    assert run.config["data"]["samples"] == 6
    gram = json.loads((kept / "summary.json").read_text())["gram"]
    assert (gram["samples"], gram["n"], gram["K"]) == (6, 60, 64 * 12 + 12 + 12 * 10 + 10)
    assert gram["rules"]["[0]['w']"] == "dense pairs"


def test_pieces_and_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kernel_run, "PIECE_BYTES", 2 * 60 * 10 * 8)  # two samples' rows
    monkeypatch.setattr(kernel_run, "CHUNK_OUTPUTS", 20)
    kernel_run.run(load_config(None, [*SMALL, f"out={tmp_path / 'r'}"]), progress=True)
    said = capsys.readouterr()
    assert "Gram matrix:" in said.err
    assert "effective dimension at eps = 1e-06: 60.0 of 60" in said.out
    D = dense(SMALL)
    gram = xarray.open_dataset(tmp_path / "r" / "gram.nc")["gram"]
    assert np.abs(gram.values.reshape(60, 60) - D @ D.T).max() <= 1e-12 * np.abs(D @ D.T).max()
    assert gram.encoding["chunksizes"] == (2, 10, 2, 10)


def test_fewer_parameters_than_outputs(tmp_path):
    words = ["data.samples=20", "model.widths=[]", "data.name=wine"]
    assert main(["gram", "--quiet", *words, f"out={tmp_path / 'r'}"]) == 0
    data = xarray.open_dataset(tmp_path / "r" / "gram.nc")
    n, num_params = dense(words).shape
    assert num_params < n
    assert data["sigma"].size == num_params


def test_what_rounding_hides_is_counted_as_such():
    spectrum = kernel_run.Spectrum.of(np.diag([1.0, 1e-4, 1e-30]), 3, 1e-8)
    assert np.isnan(spectrum.sigma).tolist() == [False, False, True]
    low, high = spectrum.effective_dimension
    assert low == pytest.approx(2, abs=1e-8)
    floor = 3 * np.finfo(float).eps
    assert high - low == pytest.approx(floor / (floor + 1e-16))
    assert "1 below 3e-08 of the largest, hidden by rounding" in spectrum.lines()[0]
    assert spectrum.lines()[2].endswith("eps = 1e-08: 2.0 to 2.9 of 3")


def test_a_network_that_does_not_move_has_dimension_zero():
    spectrum = kernel_run.Spectrum.of(np.zeros((3, 3)), 2, 1e-6)
    assert spectrum.sigma.tolist() == [0, 0]
    assert spectrum.effective_dimension == (0, 0)
    assert len(spectrum.lines()) == 3


MISTAKES = [
    (["data.name=digit"], "did you mean"),
    (["model.widthss=3"], "widthss"),
    (["nope.toml"], "nope.toml"),
    (["flows=straight"], "chordflow gram integrates no such flow"),
    (["rtol=1e-9"], "chordflow gram integrates no such flow"),
    (["eps=0"], "expected a number in (0, 1)"),
    (["model.dtype=float32"], "float64"),
]


@pytest.mark.parametrize(("words", "text"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_a_users_mistake_is_one_line_and_exit_status_2(words, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["gram", *words]) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.startswith("chordflow: ")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


def test_what_does_not_fit_is_refused_before_there_is_a_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CHORDFLOW_MEMORY_LIMIT", str(2**20))
    assert main(["gram", f"out={tmp_path / 'r'}"]) == 2
    assert "n = 2000 outputs with its spectrum needs 0.06 GiB" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_taken_folder_is_refused_and_stays_as_it_is(kept, capsys):
    before = sorted((p.name, p.stat().st_mtime_ns) for p in kept.iterdir())
    assert main(["gram", *SMALL, f"out={kept}"]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert sorted((p.name, p.stat().st_mtime_ns) for p in kept.iterdir()) == before


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "free some space, then do it again\n"),
        (ValueError("not finite"), 2, "chordflow: not finite\n"),
    ],
    ids=["disk", "mistake"],
)
def test_the_folder_is_held_meanwhile_and_a_failure_takes_it_away(capsys, tmp_path, monkeypatch, error, status, text):
    states, out = [], tmp_path / "runs" / "r"

    def fail(path, dataset):
        states.append(cf.open_run(out).state)
        with naming(path):
            raise error

    monkeypatch.setattr("chordflow.record.folder.write_dataset", fail)
    assert main(["gram", "--quiet", *SMALL, f"out={out}"]) == status
    said = capsys.readouterr().err
    assert said.endswith(text)
    assert said.count("\n") == 1
    assert states == ["running"]
    assert not list(tmp_path.iterdir())


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["gram", "--help"])
    assert stop.value.code == 0
    assert "chordflow gram data.samples=500" in capsys.readouterr().out
