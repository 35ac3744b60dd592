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
from chordflow.figures import (
    Look,
    class_map,
    cost_curves,
    cost_seconds,
    deviation_curve,
    deviation_curves,
    dimension_curves,
    draw_planes,
    drift_curves,
    looks,
    output_plane,
    over_clock,
    save,
    simplex,
    spectrum_heat,
    spectrum_map,
)
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
    assert legend(figure) == [
        "straight: on the chord to rounding",
        "standard: up to 3×10⁻⁷ off the chord",
    ]
    assert figure.axes[0].get_ylabel().endswith("stretched")
    np.testing.assert_allclose(lines(figure.axes[0])["standard: up to 3×10⁻⁷ off the chord"], bent.T, **TIGHT)


def legend(figure: Any) -> list[str]:
    """What the legend above the axes says."""
    return [text.get_text() for text in figure.subfigs[0].legends[0].get_texts()]


def test_planes_are_drawn_on_top_of_each_other():
    (first, one), (second, other) = flows(3), flows(12, amount=2.0)
    planes = [
        principal_plane(first, one),
        principal_plane({f"{name} · b": path for name, path in second.items()}, other),
    ]
    figure = draw_planes(planes)
    drawn = lines(figure.axes[0])
    assert len(drawn) == 6
    for plane in planes:
        for name, points in plane.points.items():
            (line,) = (line for label, line in drawn.items() if label.startswith(f"{name}:"))
            np.testing.assert_array_equal(line, points.T)
    with pytest.raises(ValueError, match="each name once"):
        draw_planes([planes[0], planes[0]])


def test_a_look_that_is_given_is_taken():
    paths, chord = flows(3)
    ring = Look("#E69F00", (0, (1, 1)), "X", hollow=True)
    figure = output_plane(paths, chord, styles={"adapted": ring, "not there": ring})
    taken: list[Any] = [line for line in figure.axes[0].get_lines() if str(line.get_label()).startswith("adapted")]
    assert [(line.get_color(), line.get_marker(), line.get_markerfacecolor()) for line in taken] == [
        ("#E69F00", "X", "#FFFFFF")
    ]


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


def counted(figure: Any, panel: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Counts (bins, columns) of a map of singular values, and the edges of its bins."""
    mesh = figure.axes[panel].collections[0]
    counts = np.ma.filled(mesh.get_array(), 0)
    return counts, mesh.get_coordinates()[:, 0, 1]


def test_the_map_of_singular_values_counts_each_of_them_at_every_time():
    rng = np.random.default_rng(SEED)
    sigmas = np.sort(10.0 ** rng.uniform(-3, 1, (4, 57)), axis=1)[:, ::-1]
    times = np.array([0.0, 0.2, 0.7, 1.0])
    counts, edges = counted(spectrum_heat({"straight": (times, sigmas, 1e-8)}))
    assert set(counts.sum(axis=0)) == {57}
    # The first column is half a column after the first spectrum: sums below each edge are those of the interpolation.
    weight = (0.5 / counts.shape[1]) / 0.2
    first = np.exp((1 - weight) * np.log(sigmas[0]) + weight * np.log(sigmas[1]))
    np.testing.assert_array_equal(np.cumsum(counts[:, 0]), [(first < edge).sum() for edge in edges[1:]])
    assert edges[1] / edges[0] == pytest.approx(10**0.1, rel=0.02)  # a whole number of bins fits the range


def test_the_map_has_the_damping_line_and_keeps_what_is_below_in_its_lowest_row():
    sigmas = np.array([[1.0, 0.1, 0.0], [1.0, 0.1, 1e-300]])
    figure = spectrum_heat({"adapted": (np.array([0.0, 1.0]), sigmas, 1e-6)})
    (damping,) = (line for line in figure.axes[0].get_lines() if is_ink(line))
    np.testing.assert_allclose(np.asarray(damping.get_ydata(), float), 1e-3)
    counts, edges = counted(figure)
    assert edges[0] == pytest.approx(1e-5), "nothing is told apart a hundred times below the line"
    assert (counts[0] == 1).all()


def test_seconds_of_the_ends_alone_are_drawn_as_the_end():
    long = (np.array([0.1, 1.0, 2.0]), np.array([1.0, 0.1, 0.01]))
    drawn = lines(cost_seconds({"straight": long, "adapted": (np.array([0.0, 7.0]), np.array([1.0, 1e-3]))}).axes[0])
    np.testing.assert_array_equal(drawn["straight"], long)
    np.testing.assert_array_equal(drawn["adapted"], [[7.0], [1e-3]])


def test_deviations_of_several_flows_lie_on_their_predictions_without_the_start():
    t = np.linspace(0, 0.9, 4)
    measured = {"standard": (t, 0.1 * t), "straight": (t, 1e-8 * t)}
    figure = deviation_curves(measured, predictions={"standard": (t, 0.2 * t)})
    drawn = lines(figure.axes[0])
    np.testing.assert_array_equal(drawn["standard"], [t[1:], 0.1 * t[1:]])
    wide = [np.asarray(line.get_data()) for line in figure.axes[0].get_lines() if line.get_linewidth() == 5]
    np.testing.assert_array_equal(wide[0], [t[1:], 0.2 * t[1:]])
    assert legend(figure) == ["standard", "straight", "predicted"]


def test_powers_of_ten_are_plain_characters():
    figure = drift_curves({"standard": (np.linspace(0, 1, 3), np.array([0, 1.0, 2.0]))})
    figure = deviation_curves({"a": (np.arange(3.0) / 2, np.array([0, 3e-9, 2e-2]))})
    figure.draw_without_rendering()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "10⁻⁵" in labels
    assert not [label for label in labels if "$" in label or "{" in label]


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("bend", [0.02, 0.5, 3.0])
def test_the_plane_is_drawn_without_a_word_and_names_the_ends_inside(narrow, bend, caplog):
    t = np.linspace(0, 1, 9)[:, None]
    figure = output_plane({"a": np.hstack([t, bend * t * (1 - t)])}, (np.zeros(2), np.array([1.0, 0.0])), narrow=narrow)
    figure.draw_without_rendering()
    assert caplog.messages == [], "matplotlib logs limits that it cannot keep"
    (ax,) = figure.axes
    for text in ax.texts:
        assert text.get_window_extent().y0 > ax.get_window_extent().y0, text.get_text()


@pytest.mark.parametrize("narrow", [False, True])
def test_many_names_leave_the_axes_their_height(narrow):
    t = np.linspace(0, 1, 3)

    def height(count):
        figure = drift_curves({f"flow {i}": (t, t) for i in range(count)}, narrow=narrow)
        figure.draw_without_rendering()
        return figure.axes[0].get_window_extent().height

    assert height(12) == pytest.approx(height(1), rel=0.05)


def test_a_sample_on_the_simplex_is_at_its_barycentric_place():
    way = np.array([[[1 / 3] * 3], [[0.7, 0.2, 0.1]]])
    figure = simplex({"straight": way}, np.array([[0.0, 1.0, 0.0]]))
    (path,) = (line for line in figure.axes[0].get_lines() if line.get_linewidth() == 0.8)
    np.testing.assert_allclose(np.asarray(path.get_data(), float), [[0.5, 0.25], [3**0.5 / 6, 0.05 * 3**0.5]], **TIGHT)
    assert path.get_color() == "#D55E00", "the colour of the second class"
    (ring,) = (line for line in figure.axes[0].get_lines() if line.get_markerfacecolor() == "none")
    np.testing.assert_allclose(np.asarray(ring.get_data(), float), [[1], [0]], **TIGHT)
    assert "class 1" in [text.get_text() for text in figure.axes[0].texts]


def test_a_class_map_shows_the_matrices_on_one_scale():
    start, end = np.full((3, 3), -0.5), np.eye(3)
    figure = class_map({"start": start, "predicted": end}, quantity="output")
    pictures = [ax.images[0] for ax in figure.axes[:2]]
    for picture, matrix in zip(pictures, (start, end), strict=True):
        np.testing.assert_array_equal(picture.get_array(), matrix)
        assert picture.get_clim() == (-0.5, 1.0)


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
    "deviations at one time": lambda: deviation_curves({"a": (np.zeros(1), np.zeros(1))}),
    "no seconds": lambda: cost_seconds({"a": (ZEROS, ZEROS + 1)}),
    "all is followed": lambda: dimension_curves({"a": (ZEROS, ZEROS + 4)}, {"a": (ZEROS, ZEROS)}),
    "only the dimension": lambda: dimension_curves({"a": (ZEROS, ZEROS + 4)}, {}),
    "nothing drifts": lambda: drift_curves({"a": (ZEROS, ZEROS)}, narrow=True),
    "one spectrum": lambda: spectrum_heat({"a": (np.zeros(1), np.ones((1, 3)), 0.0)}),
    "no rank on the map": lambda: spectrum_heat({"a": (np.arange(2.0), np.zeros((2, 5)), 0.0)}, narrow=True),
    "six spectra": lambda: spectrum_heat({c: (np.arange(2.0), np.ones((2, 5)), 1e-9) for c in "abcdef"}),
    "seven class maps": lambda: class_map({c: np.eye(2) for c in "abcdefg"}, quantity="output"),
    "a class without samples": lambda: class_map(
        {"a": np.array([[np.nan, np.nan], [0, 1]])}, quantity="p", narrow=True
    ),
    "a long legend": lambda: drift_curves(
        {f"standard · {'long' * 9}{i}": (ZEROS, ZEROS) for i in range(9)}, narrow=True
    ),
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
        (lambda: deviation_curves({}), "Deviation from the chord: no curve"),
        (lambda: over_clock("Held out", {"cost": {}}), "Held out: no curve"),
        (lambda: cost_seconds({}), "cost_seconds: no curve"),
        (lambda: draw_planes([]), "at least one plane"),
        (lambda: spectrum_heat({}), "spectrum_heat: no spectrum"),
        (lambda: spectrum_heat({"a": (ZEROS, np.full((4, 2), np.nan), 1.0)}), "singular values: expected finite"),
        (lambda: simplex({}, np.ones((1, 3)) / 3), "simplex: no path"),
        (lambda: simplex({"a": np.ones((2, 1, 3))}, np.ones((1, 3)) / 3), "a: expected probabilities that sum to 1"),
        (lambda: simplex({"a": np.ones((2, 1, 2)) / 2}, np.ones((1, 3)) / 3), "a: expected three classes"),
        (lambda: simplex({"a": np.ones((2, 4, 3)) / 3}, np.ones((1, 3)) / 3), r"a: expected shape \(T, N, 3\), N ≤ 1"),
        (lambda: class_map({}, quantity="p"), "class_map: expected square matrices"),
        (lambda: class_map({"a": np.ones((2, 3))}, quantity="p"), r"got shapes \[\(2, 3\)\]"),
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
