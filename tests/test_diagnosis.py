"""What is kept of a finished flow, against dense linear algebra on the parameters that were saved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import chordflow as cf
from chordflow import diagnosis
from chordflow.cli import main
from chordflow.config import Config
from chordflow.setting import Setting

# 120 outputs, 170 parameters with hidden directions that no parameter moves: the labels are not all reached.
SHAPE = ["data.samples=12", "model.widths=8", "saves=9"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("diagnosis") / "run"
    assert main(["run", *SHAPE, "flows=straight,adapted,standard", f"out={out}"]) == 0
    return cf.open_run(out)


@pytest.fixture(scope="module")
def setting(run):
    return Setting.build(Config.from_dict(run.config))


def dense(setting, params) -> np.ndarray:
    """D by differentiating the outputs, with none of the library's products."""
    problem = setting.problem()
    theta, back = problem.ravel(params)

    def outputs(theta):
        return jax.vmap(lambda z: setting.apply(back(theta), z))(jnp.asarray(problem.terms[0].samples)).ravel()

    return np.asarray(jax.jacrev(outputs)(theta))


def at(run, setting, flow, times):
    """Parameters at the saves with these times."""
    index = np.searchsorted(run.trajectory(flow)["time"], times)
    return [run.params(flow, like=setting.params, save=int(i)) for i in index]


@pytest.mark.parametrize("flow", ["straight", "adapted", "standard"])
def test_reach_drift_and_dimension_are_those_of_the_dense_jacobian(run, setting, flow):
    data = run.trajectory(flow)
    lam = data.attrs["lam"]
    x = data["outputs"].to_numpy().reshape(data.sizes["time"], -1)
    y = data["target"].to_numpy().ravel()
    start = dense(setting, setting.params)
    assert lam == pytest.approx((1e-6 * np.linalg.norm(start, 2)) ** 2, rel=1e-9)
    for k, (t, params) in enumerate(
        zip(data["diagnosis_time"].to_numpy(), at(run, setting, flow, data["diagnosis_time"]), strict=True)
    ):
        D = dense(setting, params)
        U, sigma, _ = np.linalg.svd(D, full_matrices=False)
        u = y - (x[0] if flow == "straight" else x[np.searchsorted(data["time"], t)])
        kept = 1 - (lam / (sigma**2 + lam)) ** 2
        missing = np.linalg.norm(u - U @ (kept * (U.T @ u))) / np.linalg.norm(u)
        # Where nothing but damping is missing, what is left is rounding of numbers of size 1.
        assert float(data["unreachable_fraction"][k]) == pytest.approx(missing, rel=1e-4, abs=1e-8)
        drift = np.linalg.norm(D @ D.T - start @ start.T) / np.linalg.norm(start @ start.T)
        assert float(data["kernel_drift"][k]) == pytest.approx(drift, rel=1e-9, abs=1e-12)
    for k, params in enumerate(at(run, setting, flow, data["spectrum_time"])):
        sigma = np.linalg.svd(dense(setting, params), compute_uv=False)
        counted = float(np.sum(sigma**2 / (sigma**2 + lam)))
        assert float(data["effective_dimension"][k]) == pytest.approx(counted, rel=1e-6)


def test_a_rank_deficient_run_departs_as_2_58_says(run):
    for flow in ("straight", "adapted"):
        data = run.trajectory(flow)
        measured, predicted = data["deviation"].to_numpy(), data["predicted_deviation"].to_numpy()
        assert measured.max() > 0.01, "the parameters reach all directions: nothing is tested"
        # S is known at nine saves; between them it is a cubic.
        np.testing.assert_allclose(predicted, measured, atol=0.1 * measured.max())
        assert "(2.58)" in data["predicted_deviation"].attrs["long_name"]


def test_the_deviation_is_the_largest_distance_from_the_chord(run):
    data = run.trajectory("standard")
    t = 1 - np.exp(-data["s"].to_numpy() / 12)
    x, y = data["outputs"].to_numpy(), data["target"].to_numpy()
    np.testing.assert_array_equal(data["equilibrium"], y)
    by_hand = [max(abs(x[i] - (1 - t[i]) * x[0] - t[i] * y).ravel()) / abs(y - x[0]).max() for i in range(len(t))]
    np.testing.assert_allclose(data["deviation"], by_hand, rtol=1e-9, atol=1e-14)
    frozen = data["predicted_outputs"].to_numpy()
    costs = [0.5 * np.sum((frozen[i] - y) ** 2) / 12 for i in range(len(t))]
    np.testing.assert_allclose(data["predicted_cost"], costs, rtol=1e-12)
    assert "frozen kernel" in data["predicted_deviation"].attrs["long_name"]


def test_the_integral_of_what_is_missing_is_that_of_a_broken_line():
    missing = diagnosis.Missing(np.array([0.0, 0.4, 1.0]), np.array([[0.0, 1.0], [2.0, 1.0], [2.0, -2.0]]))
    ts = np.array([0.0, 0.2, 0.4, 0.7, 1.0])
    # By hand: 5t² and then 2(t − 0.4); t and then the antiderivative of 1 − 5(t − 0.4).
    late = ts[3:] - 0.4
    first, second = [0, 0.2, 0.4, *(0.4 + 2 * late)], [0, 0.2, 0.4, *(0.4 + late - 2.5 * late**2)]
    # Between the saves 0 and 0.4 the first component is 5t, whose integral at 0.2 is 0.1.
    np.testing.assert_allclose(missing.integral(ts), np.transpose([[0, 0.1, *first[2:]], second]), atol=1e-15)


def test_variables_say_what_they_are(run):
    data = run.trajectory("straight")
    for name in (
        "deviation",
        "predicted_deviation",
        "sigma",
        "effective_dimension",
        "unreachable_fraction",
        "kernel_drift",
    ):
        assert data[name].attrs["long_name"], name
        assert data[name].attrs["units"], name
    assert data["seconds"].attrs["units"] == "s"


def test_one_hot_logits_have_a_cost_but_no_chord(tmp_path):
    words = ["loss=cross_entropy", "flows=adapted", "data.samples=4", "model.widths=8", "saves=3", "t1=2"]
    assert main(["run", *words, f"out={tmp_path / 'r'}"]) == 0
    data = cf.open_run(tmp_path / "r").trajectory()
    assert "equilibrium" not in data
    assert "no finite equilibrium" in data.attrs["without_deviation"]
    assert data["predicted_cost"].shape == data["cost"].shape
    assert data.attrs["loss"] == "CrossEntropy"


def test_what_takes_too_long_is_left_out_with_its_reason(run, tmp_path, monkeypatch):
    monkeypatch.setattr(diagnosis, "DEVIATION_OUTPUTS", 100)
    exact = run.trajectory("straight")["predicted_deviation"].to_numpy()
    assert main(["run", *SHAPE, "flows=straight", f"out={tmp_path / 'some'}"]) == 0
    data = cf.open_run(tmp_path / "some").trajectory()
    # The straight flow asks for one velocity: what is missing of it, at the saves that are diagnosed, is enough.
    assert data["predicted_deviation"].attrs["long_name"].endswith("from S at 9 saves")
    # Nine values of an integrand that bends, by the trapezoidal rule.
    np.testing.assert_allclose(data["predicted_deviation"], exact, atol=0.2 * exact.max())
    monkeypatch.setattr(diagnosis, "GRAM_OUTPUTS", 100)
    assert main(["run", *SHAPE, "flows=straight", f"out={tmp_path / 'none'}"]) == 0
    data = cf.open_run(tmp_path / "none").trajectory()
    assert "n = 120 is above the 100" in data.attrs["without_predicted_deviation"]
    assert "n = 120" in data.attrs["without_kernel_drift"]
    assert not {"predicted_deviation", "kernel_drift", "unreachable_fraction"} & set(data)
