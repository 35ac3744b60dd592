"""The page of run folders: what it holds, that it asks nothing of a network, and what it says where something lacks."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import CONFIG, flow_data, folder, two_flows

from chordflow import figures, record, verification
from chordflow.cli import main
from chordflow.record import remove_run
from chordflow.record.datasets import write_dataset
from chordflow.report import write_report
from chordflow.report.reading import read_runs
from chordflow.report.sections import planes, sections, styles
from chordflow.verification import Check, Outcome
from chordflow.verification.kept import keep, read_kept

FIGURES = ["outputs", "cost", "seconds", "deviation", "spectrum", "reach", "drift", "classes", "heldout"]


class Page(HTMLParser):
    """Elements with their attributes and text, and whether each is closed in its turn."""

    VOID = frozenset({"meta", "input", "br", "link", "img"})

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [a for t, a in self.elements if t == tag and attributes.items() <= a.items()]


def page_of(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def shown(*runs) -> dict[str, str]:
    """The sections of a page without drawing them: caption and remarks of each, in capitals where it has a figure."""
    found = sections(read_runs([run.path for run in runs]))
    words = {one.ident: " ".join([one.caption, *one.remarks]) for one in found}
    return {one.ident.upper() if one.make else one.ident: words[one.ident] for one in found}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("made") / "first", two_flows())


@pytest.fixture(scope="module")
def page(made):
    return page_of(write_report([made.path]))


# What is there -------------------------------------------------------------------------------------------------------


def test_a_run_of_the_command_line_gives_a_page_beside_its_data(tmp_path, capsys):
    out = tmp_path / "tiny"
    words = ["data.samples=8", "model.widths=8", "saves=9", "flows=straight,adapted,standard"]
    assert main(["run", *words, f"out={out}"]) == 0
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'report.html'}\n"
    page = page_of(out / "report.html")
    assert [svg["id"] for svg in page.all("svg", **{"class": "wide"})] == [f"{name}-wide" for name in FIGURES]
    assert "Not shown" not in page.text
    assert "predicted by (2.58) from S along the run" in page.text
    assert "not finished" not in page.text


def test_every_figure_has_two_widths_a_title_a_caption_and_a_download(page):
    for name in FIGURES:
        (section,) = page.all("section", id=name)
        assert section["aria-labelledby"] == f"{name}-title"
        assert page.all("svg", id=f"{name}-wide", role="img")
        assert page.all("svg", id=f"{name}-narrow", role="img")
        assert page.all("a", **{"class": "download", "data-svg": f"{name}-wide", "download": f"{name}.svg"})
    assert len(page.all("figcaption")) == len(FIGURES)
    assert page.text.count("Look ") >= len(FIGURES), "each caption says what to look for"


def test_nothing_is_asked_of_a_network(made):
    text = (made.path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    for tag, attributes in page.elements:
        for key in ("src", "href", "xlink:href", "data", "action", "srcset", "poster"):
            value = attributes.get(key, "#")
            assert value.startswith(("#", "data:image/png;base64,")), f"<{tag} {key}={value[:60]}>"
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'")


def test_ids_are_unique_and_references_lead_somewhere(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        targets = [attributes.get("href", ""), *re.findall(r"url\((#[^)]+)\)", " ".join(attributes.values()))]
        for target in (target for target in targets if target.startswith("#")):
            assert target[1:] in ids, f"<{tag}> refers to {target}"


def test_equal_folders_give_equal_bytes(tmp_path, made):
    again = folder(tmp_path / "first", two_flows())
    pages = [write_report([run.path], tmp_path / f"{i}.html").read_text() for i, run in enumerate((made, again))]
    # The path of the folder is in the hint about the verification.
    assert pages[0].replace(str(made.path), "") == pages[1].replace(str(again.path), "")


def motion(path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="motion">(.*?)</script>', text)[1])  # pyright: ignore[reportOptionalSubscript]


def test_the_marks_go_where_the_lines_are_drawn(made, page):
    """The dots of the slider and matplotlib's own path through the same points."""
    text = (made.path / "report.html").read_text(encoding="utf-8")
    flows = motion(made.path / "report.html")
    assert len(page.all("circle", **{"class": "mark"})) == 2 * len(flows)
    for kind in ("wide", "narrow"):
        picture = re.search(rf'<svg class="{kind}" id="outputs-{kind}".*?</svg>', text, re.DOTALL)
        assert picture is not None
        for flow in flows:
            drawn = "\n".join(f"{c} {x:.2f} {y:.2f}" for c, x, y in zip("M" + "L" * 8, *flow[kind], strict=True))
            rounded = re.sub(r"\d+\.\d+", lambda m: f"{float(m[0]):.2f}", picture[0])
            assert drawn.replace(".00", "") in rounded.replace(".00", "")
    assert flows[0]["t"] == [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]


def test_colours_follow_the_theme(made):
    text = (made.path / "report.html").read_text(encoding="utf-8")
    assert "var(--blue, #0072b2)" in text
    style = text[: text.index("</style>")]
    for name in set(re.findall(r"var\(--([a-z]+), #", text)):
        assert style.count(f"--{name}:") == 4, f"--{name} in light, dark (twice) and print"


def test_predictions_and_outcomes_are_in_the_table(page):
    assert "deviation from the chord 0 3×10⁻⁸" in page.text
    assert "successful, 4 samples, 7 steps, 1.5 s" in page.text


def test_the_slider_has_a_label_and_keys(page):
    (slider,) = page.all("input", id="clock")
    assert slider["type"] == "range", "the browser's own slider listens to arrow keys"
    assert page.all("label", **{"for": "clock"})


# Several runs --------------------------------------------------------------------------------------------------------


def test_two_runs_are_drawn_on_the_same_axes_with_looks_of_their_own(tmp_path, made):
    other = folder(tmp_path / "second", two_flows(seed=1))
    page = page_of(write_report([made.path, other.path], tmp_path / "both.html"))
    for label in ("straight · first", "standard · first", "straight · second", "standard · second"):
        assert page.text.count(label) >= 8, "in the legends and tables"
    assert "The runs have different chords" in page.text
    assert [svg["id"] for svg in page.all("svg", **{"class": "wide"})] == [f"{name}-wide" for name in FIGURES]
    assert page.all("section", id="config-1")
    marks = page.all("circle", **{"class": "mark", "data-path": "wide"})
    assert len({mark["style"] for mark in marks}) == 4


def test_dashes_tell_flows_apart_in_every_run_and_runs_differ_otherwise(tmp_path):
    flows = dict.fromkeys(["straight", "adapted", "standard", "interpolated(0.5)"], flow_data()[["outputs"]])
    runs = [folder(tmp_path / name, flows, {"flows": list(flows)}) for name in "abc"]
    look_of = styles([one for run in read_runs([run.path for run in runs]) for one in run.series])
    for flow in flows:
        assert len({str(look_of[f"{flow} · {name}"].dashes) for name in "abc"}) == 1
    for name in "abc":
        assert len({str(look_of[f"{flow} · {name}"].dashes) for flow in flows}) == 4
    assert len({(look.width, look.hollow, look.marker) for look in look_of.values()}) == 12


def test_runs_with_one_chord_share_a_plane(tmp_path, made):
    other = folder(tmp_path / "second", two_flows())
    assert len(planes([one for run in read_runs([made.path, other.path]) for one in run.series])) == 1
    assert "different chords" not in shown(made, other)["OUTPUTS"]


def test_folders_of_one_name_are_told_apart(tmp_path):
    runs = [folder(tmp_path / name / "run", {"straight": flow_data(seed=i)}).path for i, name in enumerate("ab")]
    labels = [one.label for run in read_runs(runs) for one in run.series]
    assert labels == ["straight · a/run", "straight · b/run"]


def test_one_run_twice_is_refused(made):
    with pytest.raises(ValueError, match="is there 2 times, expected each run once"):
        write_report([made.path, made.path])


# Less than everything ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dropped", "gone"),
    [
        (["equilibrium"], ["outputs"]),
        (["deviation", "predicted_deviation"], ["deviation"]),
        (["predicted_deviation"], []),
        (["sigma"], ["spectrum"]),
        (["effective_dimension"], []),
        (["effective_dimension", "unreachable_fraction"], ["reach"]),
        (["kernel_drift"], ["drift"]),
        (["target"], ["classes"]),
        (["seconds"], ["seconds"]),
        (["cost"], ["cost", "seconds"]),
        (["predicted_cost"], []),
        (["test_cost"], ["heldout"]),
    ],
    ids=" ".join,
)
def test_what_a_folder_does_not_hold_is_named_and_the_rest_is_drawn(tmp_path, dropped, gone):
    less = {name: data.drop_vars(dropped) for name, data in two_flows().items()}
    found = shown(folder(tmp_path / "run", less))
    assert [name.lower() for name in found if name.isupper()] == [name for name in FIGURES if name not in gone]
    for name in gone:
        assert name == "heldout" or found[name], "the section stays and says why"


def test_a_folder_of_the_first_version_has_its_outputs_told_and_its_cost_drawn(tmp_path):
    """What runs held before reports: no labels, no diagnosis, no attributes but those of the trajectory."""
    old = {name: data[["outputs", "cost", "sigma", "seconds"]] for name, data in two_flows().items()}
    for data in old.values():
        data.attrs = {}
    page = page_of(write_report([folder(tmp_path / "run", old).path]))
    assert [svg["id"] for svg in page.all("svg", **{"class": "wide"})] == ["cost-wide", "seconds-wide", "spectrum-wide"]
    assert "an older version made it" in page.text


def test_a_reason_that_the_run_gave_is_repeated(tmp_path):
    data = two_flows()
    data["standard"] = data["standard"].drop_vars("kernel_drift")
    data["standard"].attrs["without_kernel_drift"] = "the Gram matrix of n = 9999 outputs is above what is diagnosed"
    text = shown(folder(tmp_path / "run", data))["DRIFT"]
    assert "Not shown for standard: the Gram matrix of n = 9999 outputs" in text


def test_an_unfinished_run_is_shown_as_far_as_it_is_there(tmp_path):
    run = folder(tmp_path / "run", {"straight": flow_data()[["outputs", "equilibrium"]]})
    page = page_of(write_report([run.path]))
    assert "not finished: standard" in page.text
    assert page.all("svg", id="outputs-wide")
    run.write_progress({"flow": "standard", "t": 0.5, "s": 2.77, "cost": 0.25, "seconds": 3.0, "steps": 9})
    text = page_of(write_report([run.path])).text
    assert "not finished: standard (at s = 2.77, cost 0.25)" in text
    assert f"The run was stopped: chordflow resume {run.path} goes on" in text
    empty = record.create(tmp_path / "empty", CONFIG)
    page = page_of(write_report([empty.path]))
    assert "not finished: straight, standard" in page.text
    assert not page.all("svg")


def strides(flow, count, **more):
    """Lines of the stream of metrics, as a flow leaves them."""
    for i in range(1, count + 1):
        known = {"t": i / 10, "s": 4 * i / 10, "cost": 2.0**-i, "deviation": 0.01 * i, "effective_dimension": 9.5}
        yield {"flow": flow, **known, "steps": 3 * i, "rejected": 0, "seconds": 1.5 * i, **more}


def test_an_unfinished_flow_is_drawn_as_far_as_its_metrics_go(tmp_path):
    run = folder(tmp_path / "run", {"straight": flow_data()[["outputs", "equilibrium", "deviation", "cost"]]})
    for line in strides("standard", 5):
        run.write_progress(line)
    assert [one.label for one in read_runs([run.path])[0].series] == ["straight"], "without N it has no clock time"
    segment = flow_data(saves=9)[["outputs"]]
    run.of_flow("standard").segments.mkdir(parents=True)
    write_dataset(run.of_flow("standard").segments / "000000.nc", segment)
    (page,) = read_runs([run.path])
    standard = page.series[1]
    assert (standard.label, standard.num_samples, standard.is_finished) == ("standard so far", 4, False)
    np.testing.assert_allclose(standard.t, 1 - np.exp(-np.arange(1, 6) / 10))
    np.testing.assert_array_equal(standard.excess(), 2.0 ** -np.arange(1, 6))
    for name in ("deviation", "effective_dimension"):
        curve = standard.curve(name)
        assert curve is not None
        assert len(curve[0]) == 5
    words = shown(run)
    assert "Not shown for standard so far" in words["OUTPUTS"]
    assert "No prediction is drawn for standard so far: it is known once the flow is finished" in words["DEVIATION"]
    text = page_of(write_report([run.path])).text
    assert "standard so far not finished, 4 samples, 15 steps, 7.5 s" in text
    assert "not finished: standard (at s = 2, cost 0.031)" in text


def test_a_flow_that_has_no_chord_or_dimension_yet_is_drawn_without(tmp_path):
    run = folder(tmp_path / "run", {}, {**CONFIG, "loss": "cross_entropy"})
    for line in strides("straight", 2, deviation=None, effective_dimension=None):
        run.write_progress(line)
    run.of_flow("straight").segments.mkdir(parents=True)
    write_dataset(run.of_flow("straight").segments / "000000.nc", flow_data()[["outputs"]])
    words = shown(run)
    assert [name for name in words if name.isupper()] == ["COST", "SECONDS"]
    assert "The whole cost is drawn for straight so far" in words["COST"]
    assert not page_of(write_report([run.path])).all("line", **{"class": "cursor"}), "nothing would move them"


def outputs_alone() -> dict:
    """What is drawn in a second."""
    return {name: data[["outputs", "equilibrium"]] for name, data in two_flows().items()}


def test_a_damaged_file_is_named_at_the_top_and_the_rest_is_shown(tmp_path):
    run = folder(tmp_path / "run", outputs_alone())
    for line in strides("standard", 3):
        run.write_progress(line)
    run.seal()
    assert "is damaged" not in page_of(write_report([run.path])).text
    data, summary = run.path / "standard.nc", run.path / "summary.json"
    data.write_bytes(data.read_bytes()[:-100])
    summary.write_text(summary.read_text().replace("3e-08", "3e-09"))
    page = page_of(write_report([run.path]))
    assert "run is damaged. Flows whose datasets" in page.text
    assert f"{data} is truncated or damaged" in page.text
    assert f"{summary} is truncated or damaged" in page.text
    assert f"chordflow resume {run.path} makes again what it can" in page.text
    assert "not finished" not in page.text
    assert [one.label for one in read_runs([run.path])[0].series] == ["straight"]


def test_a_flow_whose_damaged_dataset_is_being_made_again_is_no_mistake(tmp_path):
    run = folder(tmp_path / "run", outputs_alone())
    run.seal()
    run.set_aside(["standard.nc"])
    page = page_of(write_report([run.path]))
    assert "not finished: standard" in page.text
    assert page.all("svg", id="outputs-wide")


def test_seconds_of_every_stride_are_drawn_where_they_were_noted(tmp_path):
    run = folder(tmp_path / "run", {"straight": flow_data()})
    for i in range(3):
        run.write_progress({"flow": "straight", "s": i, "cost": 2.0**-i, "seconds": 1.5 * i + 1, "steps": i})
    (page,) = read_runs([run.path])
    curve = page.series[0].over_seconds()
    assert curve is not None
    np.testing.assert_array_equal(curve[0], [0, 1, 2.5, 4])
    np.testing.assert_array_equal(curve[1][1:], [1, 0.5, 0.25])
    assert "one mark" not in shown(run)["SECONDS"]


def test_a_folder_with_a_report_can_be_started_over(tmp_path):
    run = folder(tmp_path / "run", {})
    write_report([run.path])
    keep(run.path, CHECKS, 20)
    remove_run(run.path)
    assert not list(run.path.glob("*"))


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_logits_are_shown_as_probabilities(tmp_path, classes):
    run = folder(tmp_path / "run", two_flows(classes=classes, loss="CrossEntropy"))
    text = shown(run)["CLASSES"]
    assert ("Each sample's probabilities" in text) == (classes == 3)
    assert ("Mean probability of each unit" in text) == (classes != 3)


@pytest.mark.parametrize("loss", ["SquaredError", "CrossEntropy"])
def test_each_run_has_its_own_start_and_prediction_among_the_classes(tmp_path, monkeypatch, loss):
    """Two runs whose equilibria differ: rings and maps are those of the run that they stand beside."""
    drawn = {}
    monkeypatch.setattr(figures, "simplex", lambda paths, ends, **_: drawn.update(ends))
    monkeypatch.setattr(figures, "class_map", lambda panels, **_: drawn.update(panels))
    data = {name: flow_data(seed=seed, loss=loss) for seed, name in enumerate("ab")}
    for factor, one in enumerate(data.values(), start=1):
        one["equilibrium"] = one["equilibrium"] * factor
    runs = [folder(tmp_path / name, {"straight": one}) for name, one in data.items()]
    (section,) = [one for one in sections(read_runs([run.path for run in runs])) if one.ident == "classes"]
    assert section.make is not None
    section.make(False)
    for name, one in data.items():
        end = one["equilibrium"].to_numpy()
        if loss == "CrossEntropy":
            exp = np.exp(end)
            np.testing.assert_allclose(drawn[f"straight · {name}"], exp / exp.sum(axis=1, keepdims=True))
        else:  # of four samples, those at 0 and 3 are of class 0
            np.testing.assert_allclose(drawn[f"predicted · {name}"][0], (end[0] + end[3]) / 2)
    maps = [f"{what} · {name}" for name in "ab" for what in ("start", "straight", "predicted")]
    assert list(drawn) == (maps if loss == "SquaredError" else ["straight · a", "straight · b"])


def test_one_hot_labels_of_logits_have_a_headline_of_probabilities(tmp_path, made):
    data = {name: one.drop_vars(["equilibrium", "deviation"]) for name, one in two_flows(loss="CrossEntropy").items()}
    run = folder(tmp_path / "run", data)
    (plane,) = planes(read_runs([run.path])[0].series)
    x, y = data["standard"]["outputs"].to_numpy(), data["standard"]["target"].to_numpy()
    p = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    along = ((p - p[0]) * (y - p[0])).sum(axis=(1, 2)) / ((y - p[0]) ** 2).sum()
    np.testing.assert_allclose(plane.points["standard"][:, 0], along, atol=1e-12)
    assert "One-hot labels are at no finite distance" in shown(run)["OUTPUTS"]
    path = write_report([run.path])
    assert page_of(path).all("input", id="clock")
    assert [one["deviation"] for one in motion(path)] == [None, None]
    assert "For straight · run, standard · run, whose labels are one-hot" in shown(made, run)["OUTPUTS"]


def test_labels_that_are_no_classes_have_no_class_view(tmp_path):
    data = flow_data()
    data["target"] = data["target"] - 0.5
    assert "The task is not a classification" in shown(folder(tmp_path / "run", {"straight": data}))["classes"]


# Words of others -----------------------------------------------------------------------------------------------------


def test_words_of_the_user_stay_words(tmp_path):
    evil = "<script>alert('$x$')</script>"
    config = {**CONFIG, "loss": evil, "data": {"name": f"</title>{evil}", "samples": 4}}
    few = ["outputs", "cost", "equilibrium", "deviation"]
    run = folder(tmp_path / "run <b>$a$", {"straight": flow_data(seed=2)[few]}, config)
    other = folder(tmp_path / "b&b", {"straight": flow_data()[few]})
    path = write_report([run.path, other.path], tmp_path / "page.html")
    page = page_of(path)
    assert len(page.all("script")) == 2, "the page's own"
    assert not page.all("b")
    assert "straight · run <b>$a$" in page.text
    assert evil in page.text


def test_mistakes_are_one_line(tmp_path, made, capsys):
    for words, text in [
        ([str(tmp_path / "none")], "does not exist"),
        ([str(tmp_path)], "no config.toml"),
        ([str(made.path), "--out", str(tmp_path / "no" / "page.html")], "cannot be written"),
    ]:
        assert main(["report", *words]) == 2
        said = capsys.readouterr().err
        assert text in said
        assert said.count("\n") == 1
    (made.path / "verification.json").write_text("{}")
    try:
        with pytest.raises(ValueError, match=r"verification\.json is damaged"):
            write_report([made.path], tmp_path / "page.html")
    finally:
        (made.path / "verification.json").unlink()


def test_the_page_about_runs_runs(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).resolve().parents[1] / "docs" / "runs.md").read_text(encoding="utf-8")
    folder(tmp_path / "runs" / "digits", two_flows())
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    exec(compile(code, "docs/runs.md", "exec"), {})
    assert "stopped ('straight', 'standard') []" in capsys.readouterr().out


def test_the_page_about_the_page_runs_and_names_every_figure(tmp_path, monkeypatch):
    text = (Path(__file__).resolve().parents[1] / "docs" / "report.md").read_text(encoding="utf-8")
    run = folder(tmp_path / "runs" / "digits", two_flows())
    for one in sections(read_runs([run.path])):
        assert f"**{one.title}.**" in text
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    exec(compile(code, "docs/report.md", "exec"), {})
    assert (tmp_path / "deviation.svg").is_file()


# Statements ----------------------------------------------------------------------------------------------------------

CHECKS = [
    Check("a", "x < y & z", "2.1", Outcome.HOLDS, 1.0, 1.0, 0.0, 1e-9, "rounding"),
    Check("b", "and so on", "2.2", Outcome.FAILS, 1.0, 2.0, float("nan"), 1e-9, "rounding"),
    Check("c", "the rest", "2.3", Outcome.NOT_APPLICABLE, None, None, None, None, "one-hot labels"),
]


def test_statements_that_were_checked_are_listed(tmp_path):
    # Nothing to draw: the words are looked at.
    run = folder(tmp_path / "run", {})
    assert "chordflow verify" in page_of(write_report([run.path])).text
    keep(run.path, CHECKS, 20)
    kept = read_kept(run.path)
    assert kept is not None
    assert kept.checks[0] == CHECKS[0]
    page = page_of(write_report([run.path]))
    assert "on 20 of its samples: 1 hold, 1 do not hold, 1 not applicable" in page.text
    assert "x < y & z" in page.text
    assert "error nan > 1×10⁻⁹ (rounding)" in page.text
    assert page.all("details")[0].keys() == {"open"}, "a statement that fails is not folded away"


def test_verify_keeps_its_outcome_in_a_run_folder(tmp_path, monkeypatch, capsys):
    seen = []

    def examine(evidence):
        seen.append((evidence.problem.num_samples, evidence.rtol, evidence.eps))
        return CHECKS[:1]

    monkeypatch.setattr(verification, "examine", examine)
    config = {**CONFIG, "rtol": 1e-5, "eps": 1e-3, "model": {"name": "mlp", "widths": [4]}}
    run = folder(tmp_path / "run", {"straight": flow_data()}, config)
    assert main(["verify", str(run.path)]) == 0
    assert f"kept for the report: {run.path / 'verification.json'}" in capsys.readouterr().out
    assert main(["verify", str(run.path), "data.samples=3", "eps=1e-2"]) == 0
    # Tolerances of the run's flows are not those of a verification; more samples than the run has are not taken.
    assert seen == [(4, 1e-8, None), (3, 1e-8, 1e-2)]
    kept = read_kept(run.path)
    assert kept is not None
    assert kept.samples == 3
