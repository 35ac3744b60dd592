"""Figures: the plane against a literal definition, what is drawn against its formula, edge cases without a warning."""

import subprocess
import sys
import warnings
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from chordflow.extras import MissingExtraError
from chordflow.figures import cost_curves, deviation_curve, looks, output_plane, save, spectrum_map
from chordflow.projection import principal_plane

SEED = 20240802
OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}

# Projections of n ≤ 12 numbers of size 1 in float64: some tens of roundings.
TIGHT = {"rtol": 0, "atol": 1e-13}


def flows(n: int, *, amount: float = 1.0, seed: int = SEED):
    """Three paths of different length from x0 in the direction of y, off the chord by the given amount."""
    rng = np.random.default_rng(seed)
    x0, y = rng.normal(size=(2, n))
    bends = rng.normal(size=(3, n))
    paths = {}
    for name, count, bend in zip(("straight", "adapted", "standard"), (4, 9, 17), bends, strict=True):
        t = np.linspace(0, 0.9, count)[:, None]
        paths[name] = (1 - t) * x0 + t * y + amount * t * (1 - t) * bend
    return paths, (x0, y)


# The plane -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 12, 50], ids="{} outputs, 30 saves".format)
def test_the_plane_is_that_of_its_definition(n):
    paths, (x0, y) = flows(n)
    plane = principal_plane(paths, (x0, y))
    e = (y - x0) / np.linalg.norm(y - x0)
    projector = np.eye(n) - np.outer(e, e)
    rows = np.concatenate([(x - x0) @ projector / np.sqrt(len(x)) for x in paths.values()])
    _, sigma, directions = np.linalg.svd(rows)
    # The sign is free in the oracle; squares of singular values make eigh lose the gap's digits.
    assert abs(directions[0] @ plane.across) == pytest.approx(1, abs=1e-10)
    np.testing.assert_allclose(plane.along, e, **TIGHT)
    assert plane.share == pytest.approx(sigma[0] ** 2 / np.sum(sigma**2), abs=1e-10)
    for name, x in paths.items():
        points = np.stack([(x - x0) @ e, (x - x0) @ plane.across], axis=1) / np.linalg.norm(y - x0)
        np.testing.assert_allclose(plane.points[name], points, **TIGHT)
        off = max(min_distance_to_line(point, x0, y) for point in x) / np.linalg.norm(y - x0)
        assert plane.off[name] == pytest.approx(off, rel=1e-6)


def min_distance_to_line(point, a, b):
    """By minimising over the position on the line, with no projector."""
    from scipy.optimize import minimize_scalar

    nearest: Any = minimize_scalar(lambda t: np.linalg.norm(point - a - t * (b - a)), tol=1e-12)
    return float(nearest.fun)


def test_the_plane_turns_moves_and_scales_with_the_outputs():
    paths, (x0, y) = flows(12)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))
    shift = np.random.default_rng(2).normal(size=12)

    def moved(x):
        return 1e3 * (x @ rotation + shift)

    first = principal_plane(paths, (x0, y))
    second = principal_plane({name: moved(x) for name, x in paths.items()}, (moved(x0), moved(y)))
    for name in paths:
        np.testing.assert_allclose(second.points[name], first.points[name], rtol=0, atol=1e-10)


def test_outputs_per_sample_are_flattened():
    paths, (x0, y) = flows(12)
    folded = principal_plane({k: x.reshape(-1, 4, 3) for k, x in paths.items()}, (x0.reshape(4, 3), y.reshape(4, 3)))
    flat = principal_plane(paths, (x0, y))
    assert {k: v.tolist() for k, v in folded.points.items()} == {k: v.tolist() for k, v in flat.points.items()}


def test_a_flow_weighs_the_same_however_often_it_was_saved():
    paths, chord = flows(12)
    often = {**paths, "standard": np.repeat(paths["standard"], 7, axis=0)}
    np.testing.assert_allclose(principal_plane(often, chord).across, principal_plane(paths, chord).across, **TIGHT)


def test_more_outputs_than_saves_and_fewer_agree():
    """The eigendecomposition is done on the smaller side: outputs padded with zeros change the side, not the plane."""
    paths, (x0, y) = flows(12)
    padded = {k: np.pad(x, ((0, 0), (0, 40))) for k, x in paths.items()}
    wide = principal_plane(padded, (np.pad(x0, (0, 40)), np.pad(y, (0, 40))))
    # Squared spectra: eigenvectors agree to rounding over the relative gap.
    np.testing.assert_allclose(wide.across[:12], principal_plane(paths, (x0, y)).across, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(wide.across[12:], 0)


def test_tiny_deviations_keep_their_direction():
    paths, chord = flows(12, amount=1e-9)
    plane, large = principal_plane(paths, chord), principal_plane(flows(12)[0], chord)
    # A deviation of 1e-9 in numbers of size 1 has seven digits.
    assert plane.across @ large.across == pytest.approx(1, abs=1e-6)
    for name in paths:
        assert plane.off[name] == pytest.approx(1e-9 * large.off[name], rel=1e-5)


@pytest.mark.parametrize("n", [1, 2, 200])
def test_a_straight_line_stays_on_the_chord(n):
    rng = np.random.default_rng(SEED)
    x0, y = rng.normal(size=(2, n))
    t = np.linspace(0, 1, 11)[:, None]
    plane = principal_plane({"straight": (1 - t) * x0 + t * y}, (x0, y))
    np.testing.assert_allclose(plane.points["straight"][:, 0], t[:, 0], **TIGHT)
    np.testing.assert_array_equal(plane.points["straight"][:, 1], 0)
    assert (plane.off["straight"], plane.share) == (0.0, 1.0)
    assert not plane.across.any()


def test_a_chord_without_length_shows_two_principal_directions():
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    ellipse = np.stack([3 * np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    plane = principal_plane({"loop": ellipse}, (np.zeros(3), np.zeros(3)))
    np.testing.assert_allclose(np.abs([plane.along, plane.across]), np.eye(3)[:2], **TIGHT)
    assert plane.off["loop"] == pytest.approx(1.0, abs=1e-3)  # 200 points of the circle


@pytest.mark.parametrize(
    ("paths", "chord", "message"),
    [
        ({}, (np.zeros(2), np.ones(2)), "no trajectory"),
        ({"a": np.zeros((3, 4))}, (np.zeros(2), np.ones(2)), r"'a': expected shape \(T, 2\)"),
        ({"a": np.zeros((0, 2))}, (np.zeros(2), np.ones(2)), r"got \(0, 2\)"),
        ({"a": np.zeros(2)}, (np.zeros(2), np.ones(2)), r"got \(2,\)"),
        ({"a": np.array([[0.0, np.nan]])}, (np.zeros(2), np.ones(2)), "'a': expected finite numbers, got 1"),
        ({"a": np.zeros((3, 2))}, (np.zeros(2), np.array([1.0, np.inf])), "chord: expected finite"),
    ],
)
def test_bad_trajectories_are_refused_in_one_line(paths, chord, message):
    with pytest.raises(ValueError, match=message) as error:
        output_plane(paths, chord)
    assert "\n" not in str(error.value)


# What is drawn -------------------------------------------------------------------------------------------------------


def lines(ax: Any) -> dict[str, np.ndarray]:
    """Labelled lines as (2, T) arrays."""
    return {
        line.get_label(): np.asarray(line.get_data(), float) for line in ax.get_lines() if line.get_label()[0] != "_"
    }


def is_ink(line: Any) -> bool:
    """Whether a line has the colour of the damping and the bound; a colour of a map is an array."""
    return isinstance(line.get_color(), str) and line.get_color() == "#222222"


def test_both_clocks_show_the_same_curve():
    n = 7.0
    t = np.array([0.0, 0.5, 1 - 1e-9, 1.0])
    s = np.array([0.0, 7 * np.log(2), 7 * np.log(1e9), np.inf])
    cost = np.array([1.0, 0.25, 1e-18, 0.0])
    figure = cost_curves({"straight": (s, cost)}, n, predictions={"straight": (s, 2 * cost)})
    on_s, on_t = (lines(ax)["straight"] for ax in figure.axes)
    np.testing.assert_allclose(on_t[0], t, rtol=1e-15)
    np.testing.assert_allclose(1 - on_t[0][2], 1e-9, rtol=1e-6)  # 1 − t has 7 digits there
    np.testing.assert_allclose(on_s[0], s / n, rtol=1e-15)
    np.testing.assert_array_equal(on_s[1], [1.0, 0.25, 1e-18, np.nan])
    assert figure.axes[0].get_yscale() == "log"
    assert figure.axes[0].get_title(loc="left") == "Not drawn: 1 of 4 values, at or below 0"
    dashed = [line for line in figure.axes[1].get_lines() if line.get_linewidth() == 5]
    np.testing.assert_array_equal(dashed[0].get_ydata(), [2.0, 0.5, 2e-18, np.nan])
    assert dashed[0].get_color() == looks(["straight"])["straight"].colour


def test_the_legend_says_how_far_a_flow_leaves_the_chord():
    bent = np.array([[0.0, 0.0], [0.5, 3e-7], [1.0, 0.0]])
    figure = output_plane({"straight": bent[[0, 2]], "standard": bent}, (np.zeros(2), np.array([1.0, 0.0])))
    ax: Any = figure.axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "straight: on the chord to rounding",
        "standard: up to 3×10⁻⁷ off the chord",
    ]
    assert figure.axes[0].get_ylabel().endswith("stretched")
    np.testing.assert_allclose(lines(figure.axes[0])["standard: up to 3×10⁻⁷ off the chord"], bent.T, **TIGHT)


def test_axes_have_one_scale_unless_the_picture_would_be_flat():
    paths, chord = flows(3, amount=4.0)
    assert output_plane(paths, chord).axes[0].get_aspect() == 1.0
    assert output_plane(flows(3, amount=0.01)[0], chord).axes[0].get_aspect() == "auto"


def test_the_damping_line_is_the_root_of_lambda():
    figure = spectrum_map(np.arange(3.0), np.geomspace(1, 1e-8, 50) * np.ones((3, 1)), 1e-10)
    for ax in figure.axes:
        dotted = [np.asarray(line.get_ydata()) for line in ax.get_lines() if is_ink(line)]
        np.testing.assert_allclose(dotted[0], 1e-5)
    # From the first to the last rank, each of the chosen ones over all times.
    bundle = [np.asarray(line.get_ydata()) for line in figure.axes[0].get_lines()[:-1]]
    assert (bundle[0][0], bundle[-1][0]) == (1.0, 1e-8)
    assert all(len(line) == 3 for line in bundle)


def test_a_deviation_is_drawn_with_its_prediction_and_bound():
    t = np.linspace(0, 1, 6)
    figure = deviation_curve(t, 1e-7 * t, 2e-7 * t, bound=1e-6)
    drawn = lines(figure.axes[0])
    np.testing.assert_array_equal(drawn["measured"][1], [np.nan, *(1e-7 * t[1:])])
    np.testing.assert_array_equal(drawn["predicted"][1], [np.nan, *(2e-7 * t[1:])])
    assert set(drawn["allowed"][1]) == {1e-6}
    assert figure.axes[0].get_title(loc="left") == ""  # the zero at the start is no news


ZEROS = np.zeros(4)
EDGES = {
    "one save": lambda: output_plane({"a": np.zeros((1, 3))}, (np.zeros(3), np.ones(3))),
    "one output": lambda: output_plane({"a": np.linspace(0, 1, 7)[:, None]}, (np.zeros(1), np.ones(1))),
    "nothing to learn": lambda: output_plane({"a": np.zeros((4, 3))}, (np.zeros(3), np.zeros(3))),
    "a loop": lambda: output_plane({"a": np.eye(3)}, (np.zeros(3), np.zeros(3))),
    "cost at one time": lambda: cost_curves({"a": (np.zeros(1), np.ones(1))}, 3.0),
    "cost only at the end": lambda: cost_curves({"a": (np.array([np.inf]), np.ones(1))}, 3.0),
    "zero cost": lambda: cost_curves({"a": (np.arange(4.0), ZEROS)}, 3.0, predictions={"b": (np.arange(4.0), ZEROS)}),
    "cost below its minimum": lambda: cost_curves({"a": (np.arange(4.0), ZEROS - 1e-17)}, 3.0),
    "a constant cost": lambda: cost_curves({"a": (np.arange(4.0), ZEROS + 1)}, 3.0),
    "one singular value": lambda: spectrum_map(np.zeros(1), np.ones((1, 1)), 0.0),
    "no rank": lambda: spectrum_map(np.arange(2.0), np.zeros((2, 5)), np.array([1e-3, 1e-4])),
    "no deviation": lambda: deviation_curve(np.arange(4.0), ZEROS, ZEROS),
    "deviation predicted only": lambda: deviation_curve(np.arange(4.0), ZEROS, ZEROS + 1e-9),
    "deviation at one time": lambda: deviation_curve(np.zeros(1), np.zeros(1)),
}


@pytest.mark.parametrize("draw", EDGES.values(), ids=EDGES.keys())
def test_edge_cases_draw_without_a_warning(draw):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw().draw_without_rendering()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: cost_curves({}, 3.0), "no curve"),
        (lambda: cost_curves({"a": (ZEROS, ZEROS)}, 0.0), "n must be positive.*got 0"),
        (lambda: cost_curves({"a": (ZEROS, np.zeros(3))}, 3.0), r"a: .*one shape \(T,\), got \(4,\) and \(3,\)"),
        (lambda: cost_curves({"a": (ZEROS - 1, ZEROS)}, 3.0), "a: expected times from 0 to infinity"),
        (lambda: cost_curves({"a": (ZEROS, ZEROS * np.nan)}, 3.0), "a: expected finite numbers"),
        (lambda: spectrum_map(ZEROS, np.full((4, 2), -1.0)), "not negative, got -1"),
        (lambda: spectrum_map(ZEROS, np.zeros((4, 0))), r"got \(4,\) and \(4, 0\)"),
        (lambda: deviation_curve(ZEROS, np.array([0, 1, np.inf, 2])), "deviation: expected finite numbers, got 1"),
    ],
)
def test_bad_arrays_are_refused_in_one_line(draw, message):
    with pytest.raises(ValueError, match=message) as error:
        draw()
    assert "\n" not in str(error.value)


# Looks and files -----------------------------------------------------------------------------------------------------


def test_looks_differ_and_belong_to_names():
    family = [f"interpolated({tau})" for tau in (0, 0.25, 0.5, 0.75, 1)]
    names = ["straight", "adapted", "standard", "along", *family, "mine"]
    chosen = looks(names)
    assert list(chosen) == names
    assert len({(look.colour, look.marker) for look in chosen.values()}) == len(names)
    assert {look.colour for look in chosen.values()} <= OKABE_ITO
    assert looks(["standard", "straight"])["straight"] == chosen["straight"]


def test_saved_files_are_whole_pictures_and_equal_for_equal_figures(tmp_path):
    paths, chord = flows(3)
    for name in ("first", "second"):
        assert save(output_plane(paths, chord), tmp_path / name) == (tmp_path / f"{name}.png", tmp_path / f"{name}.svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.png", "first.svg", "second.png", "second.svg"]
    for kind in ("png", "svg"):
        assert (tmp_path / f"first.{kind}").read_bytes() == (tmp_path / f"second.{kind}").read_bytes()
    with Image.open(tmp_path / "first.png") as picture:
        colours = {f"#{r:02X}{g:02X}{b:02X}" for r, g, b in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
    assert {looks([name])[name].colour for name in paths} <= colours


def test_a_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"without \.png or \.svg"):
        save(deviation_curve(ZEROS, ZEROS), tmp_path / "a.png")


def test_matplotlib_is_left_as_it_was():
    before = dict(mpl.rcParams)
    deviation_curve(ZEROS, ZEROS)
    with pytest.raises(ValueError, match="expected times"):
        spectrum_map(ZEROS, np.zeros((4, 0)))
    assert dict(mpl.rcParams) == before
    code = (
        "import sys, numpy as np; from chordflow import figures; loaded = 'matplotlib' in sys.modules; "
        "figures.deviation_curve(np.zeros(2), np.zeros(2)); print(loaded, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'figures need matplotlib: pip install "chordflow\[run\]"'):
        deviation_curve(ZEROS, ZEROS)
