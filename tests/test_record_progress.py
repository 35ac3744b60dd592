"""What a run folder holds while a run goes on: stream, segments, checkpoints, sums, lock; and what damage does."""

import errno
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray

import chordflow as cf
from chordflow import environment
from chordflow.cli import main
from chordflow.config import load_config
from chordflow.experiment import _default_out, resume, run
from chordflow.files import remove_litter, replacing
from chordflow.interruption import Stopped
from chordflow.record import FORMAT, RunError, RunningError, StorageError, create, open_run, remove_run
from chordflow.record.errors import storing

CONFIG = {"flows": ["straight"], "seed": 0}
LIKE = {"t": np.zeros(()), "theta": np.zeros(5), "count": np.zeros((), int), "flag": np.zeros((), bool)}


def arrays(number):
    return {
        "t": np.asarray(number / 3),
        "theta": np.arange(5.0) / 7 + number,
        "count": np.asarray(number),
        "flag": np.asarray(number % 2 == 0),
    }


def segment(number):
    return xarray.Dataset({"cost": ("time", np.asarray([number / 9]))}, coords={"time": [float(number)]})


@pytest.fixture
def folder(tmp_path):
    return create(tmp_path / "run", CONFIG, {"seed": 0})


@pytest.fixture
def kept(folder):
    """A flow with three segments and, of three checkpoints, the last two."""
    progress = folder.of_flow("straight")
    for number in range(3):
        progress.keep(number, arrays(number), number + 1, segment(number))
    return folder


def same(found, expected):
    return all(
        np.array_equal(found[key], expected[key]) and found[key].dtype == expected[key].dtype for key in expected
    )


# Sums ----------------------------------------------------------------------------------------------------------------


def test_sha256sum_agrees_with_the_list(kept):
    kept.write_dataset("adapted", segment(1))
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=kept.path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    listed = {line.split(": ")[0] for line in done.stdout.splitlines()}
    everything = {path.relative_to(kept.path).as_posix() for path in kept.path.rglob("*") if path.is_file()}
    assert listed == everything - {"SHA256SUMS", "summary.json"}, "all but what is replaced"
    kept.write_progress(line(1))
    kept.write_beside("verification.json", {"checks": []})
    kept.seal()
    sums = (kept.path / "SHA256SUMS").read_text()
    assert all(f"  {name}\n" in sums for name in ("metrics.jsonl", "verification.json", "summary.json"))
    assert kept.damage == []


@pytest.mark.parametrize("how", ["truncated", "altered", "missing"])
def test_each_damaged_file_is_named(kept, how):
    assert kept.damage == []
    rows = (kept.path / "SHA256SUMS").read_text().splitlines()
    listed = [row.split("  ")[1] for row in rows if not row.startswith("#")]
    assert {"config.toml", "environment.json", "segments/straight/000001.nc"} < set(listed)
    for name in listed:
        path = kept.path / name
        whole = path.read_bytes()
        if how == "missing":
            path.unlink()
        else:
            path.write_bytes(whole[:-1] if how == "truncated" else whole[:-1] + bytes([whole[-1] ^ 1]))
        (line,) = kept.damage
        assert str(path) in line
        assert ("is missing" if how == "missing" else "SHA-256") in line
        path.write_bytes(whole)


def test_a_damaged_list_is_named_and_its_whole_lines_still_count(kept):
    path = kept.path / "SHA256SUMS"
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for damaged in (whole[:-5], b"\xff\xfe" + whole, whole[1:], *(whole[:end] for end in [0, *ends[:-1]])):
        path.write_bytes(damaged)
        assert kept.damage == [f"{path} is truncated or damaged"]
    path.unlink()
    assert kept.damage == [f"{path} is missing"]


def test_an_altered_line_of_the_list_is_named(kept):
    path = kept.path / "SHA256SUMS"
    path.write_text(path.read_text().replace("environment.json", "environment.jso"))
    assert kept.damage[0] == f"{path} is truncated or damaged"


def test_a_list_without_the_sum_of_itself_is_that_of_format_2(kept):
    path = kept.path / "SHA256SUMS"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert kept.damage == [f"{path} is truncated or damaged"]
    (kept.path / "summary.json").write_text('{"format": 2}')
    assert open_run(kept.path).damage == []
    kept.of_flow("straight").keep(3, arrays(3), 4, segment(3))
    assert "# " in path.read_text()
    assert kept.damage == []


def test_without_the_sum_of_the_configuration_nothing_made_with_it_counts(kept):
    kept.write_dataset("adapted", segment(0))
    path = kept.path / "SHA256SUMS"
    path.write_text("".join(row for row in path.read_text().splitlines(True) if "config.toml" not in row))
    kept.found({})
    assert not kept.has("adapted")
    assert kept.of_flow("straight").latest(LIKE)[0] is None


@pytest.mark.parametrize("name", ["metrics.jsonl", "verification.json"])
@pytest.mark.parametrize("how", ["truncated", "altered", "missing"])
def test_in_a_finished_run_damage_of_what_changed_while_it_went_on_is_named(folder, name, how):
    folder.write_progress(line(1))
    folder.write_beside("verification.json", {"checks": []})
    folder.seal()
    path = folder.path / name
    if how == "missing":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] if how == "truncated" else whole[:-2] + b" \n")
    (text,) = folder.damage
    assert str(path) in text


def test_checks_are_kept_beside_a_run_that_goes_on_and_listed_at_its_end(folder):
    with folder.locked():
        folder.write_beside("verification.json", {"checks": []})
        assert "verification.json" not in (folder.path / "SHA256SUMS").read_text()
        folder.seal()
    assert "verification.json" in (folder.path / "SHA256SUMS").read_text()
    assert folder.damage == []


# Checkpoints ---------------------------------------------------------------------------------------------------------


def test_the_last_checkpoint_comes_back_bit_for_bit_with_all_segments(kept):
    found, reasons = kept.of_flow("straight").latest(LIKE)
    assert reasons == []
    assert found.number == 2
    assert same(found.arrays, arrays(2))
    assert [float(dataset["cost"][0]) for dataset in found.segments] == [0 / 9, 1 / 9, 2 / 9]
    assert sorted(path.name for path in kept.of_flow("straight").checkpoints.iterdir()) == ["000001", "000002"]


def checkpoint_file(kept, number):
    files = (kept.of_flow("straight").checkpoints / f"{number:06d}").rglob("*")
    return max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)


def test_a_damaged_checkpoint_leaves_the_one_before(kept):
    path = checkpoint_file(kept, 2)
    path.write_bytes(path.read_bytes()[:-3])
    damaged = kept.damaged()
    assert set(damaged) == {path.relative_to(kept.path).as_posix()}
    found, _ = kept.of_flow("straight").latest(LIKE, damaged)
    assert found.number == 1
    assert same(found.arrays, arrays(1))
    assert len(found.segments) == 2
    assert not (kept.path / "segments" / "straight" / "000002.nc").exists(), "what came after is written again"
    assert kept.damage == []


@pytest.mark.parametrize(("number", "expected"), [(2, 1), (1, None), (0, None)])
def test_a_damaged_segment_costs_the_checkpoints_after_it(kept, number, expected):
    path = kept.path / "segments" / "straight" / f"{number:06d}.nc"
    path.write_bytes(path.read_bytes()[:100])
    found, _ = kept.of_flow("straight").latest(LIKE, kept.damaged())
    assert (found and found.number) == expected
    assert kept.damage == []


def test_what_is_not_in_the_list_does_not_count(kept):
    """A process that is killed after a segment and a checkpoint and before their sums."""
    listed = (kept.path / "SHA256SUMS").read_bytes()
    progress = kept.of_flow("straight")
    progress.keep(3, arrays(3), 4, segment(3))
    (kept.path / "SHA256SUMS").write_bytes(listed)
    found, _ = progress.latest(LIKE, kept.damaged())
    assert found.number == 2
    assert not (progress.checkpoints / "000003").exists()
    progress.keep(3, arrays(7), 4, segment(7))
    found, _ = progress.latest(LIKE)
    assert same(found.arrays, arrays(7))
    assert float(found.segments[3]["cost"][0]) == 7 / 9


def test_a_checkpoint_of_other_shapes_is_not_used_and_said_so(kept):
    found, reasons = kept.of_flow("straight").latest({**LIKE, "theta": np.zeros(6)})
    assert found is None
    assert len(reasons) == 2
    assert all("of another version or configuration" in reason and "\n" not in reason for reason in reasons)


def test_removing_leaves_nothing_of_the_flow_and_all_of_others(kept):
    kept.of_flow("adapted").keep(0, arrays(0), 0, None)
    kept.of_flow("straight").remove()
    assert kept.of_flow("straight").latest(LIKE)[0] is None
    assert not (kept.path / "segments").exists()
    assert [path.name for path in (kept.path / "checkpoints").iterdir()] == ["adapted"]
    found, _ = kept.of_flow("adapted").latest(LIKE)
    assert found.segments == []
    assert kept.damage == []


# Environment ---------------------------------------------------------------------------------------------------------


def test_what_changed_since_the_start_is_kept_once_for_each_change(folder):
    for differences in ([], ["jax 1 -> 2"], ["jax 1 -> 2"], [], []):
        folder.note_resumed(differences)
        assert folder.damage == []
    assert folder.environment == {"seed": 0, "resumed": [["jax 1 -> 2"], []]}


def test_the_environment_tells_what_may_change_the_last_digits(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/elsewhere/dump --xla_cpu_enable_fast_math=false")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    then = environment.describe()
    assert then["variables"]["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false"
    for package in ("orbax-checkpoint", "xarray", "scipy", "lineax", "scikit-learn"):
        assert then["versions"][package]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("XLA_FLAGS", "")
    now = {**environment.describe(), "threads": 0, "git": {"commit": "f00"}}
    assert environment.differences({**then, "git": {"commit": "ba4"}}, now) == [
        f"threads {then['threads']} -> 0",
        "XLA_FLAGS --xla_cpu_enable_fast_math=false -> ",
        "OMP_NUM_THREADS unset -> 3",
        "commit ba4 -> f00",
    ]


# Stream --------------------------------------------------------------------------------------------------------------


def line(steps, **more):
    return {"flow": "straight", "steps": steps, "cost": 1 / 3, "s": float("inf"), "seconds": steps / 3, **more}


def test_the_stream_keeps_the_last_line_of_a_step_and_leaves_out_a_torn_one(folder):
    for entry in (line(1), line(2, cost=1.0), line(2, cost=2.0), line(3), {**line(1), "flow": "adapted"}):
        folder.write_progress(entry)
    assert [(e["flow"], e["steps"], e["cost"]) for e in folder.progress] == [
        ("straight", 1, 1 / 3),
        ("straight", 2, 2.0),
        ("straight", 3, 1 / 3),
        ("adapted", 1, 1 / 3),
    ]
    assert folder.progress[0]["s"] == float("inf")
    path = folder.path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert [e["flow"] for e in folder.progress] == ["straight"] * 3
    folder.mend()
    folder.write_progress(line(4))
    assert [e["steps"] for e in folder.progress] == [1, 2, 3, 4]


@pytest.mark.parametrize("ends", [(5, 9), (6, 8), (7, 12)], ids=str)
def test_what_was_done_again_after_a_kill_is_noted_once(folder, ends):
    """Killed at 7 steps, with a checkpoint at 4; strides end elsewhere than before, on a machine that is faster now."""
    for steps in (2, 4, 6, 7):
        folder.write_progress(line(steps, seconds=2.0 * steps))
    for steps in ends:
        folder.write_progress(line(steps, seconds=8.0 + (steps - 4) / 2))
    steps, seconds = ([entry[key] for entry in folder.progress] for key in ("steps", "seconds"))
    assert steps == [2, 4, *ends]
    assert seconds == sorted(seconds)
    folder.write_progress(line(1, seconds=0.5))  # without a checkpoint, from the start
    assert [entry["steps"] for entry in folder.progress] == [1]


def test_a_damaged_line_in_the_middle_is_named(folder):
    for steps in (1, 2):
        folder.write_progress(line(steps))
    path = folder.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"steps": 1', b'"steps" 1'))
    with pytest.raises(RunError, match=r"metrics\.jsonl is damaged in line 1: remove that line"):
        _ = folder.progress


# Folder --------------------------------------------------------------------------------------------------------------


def test_a_folder_is_locked_by_one_and_the_lock_ends_with_its_process(folder):
    code = (
        "import sys; from chordflow.record import open_run\n"
        "with open_run(sys.argv[1]).locked(): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        assert folder.state == "running"
        with pytest.raises(RunningError, match="is being written by another process"), folder.locked():
            pass
        other.kill()
    assert folder.state == "stopped"
    with folder.locked():
        pass


def test_a_run_that_ends_while_it_is_looked_at_does_not_look_stopped(folder, monkeypatch):
    from chordflow.record import folder as module

    def ends(path):
        held = is_locked(path)
        folder.seal()
        return held

    is_locked = module.is_locked
    monkeypatch.setattr(module, "is_locked", ends)
    assert folder.state == "finished"


def test_a_checkpoint_that_a_run_removes_meanwhile_is_not_called_missing(kept, monkeypatch):
    from chordflow.record import folder as module

    def goes_on(*arguments):
        monkeypatch.setattr(module, "damage", damage)
        kept.of_flow("straight").keep(3, arrays(3), 4, segment(3))
        return damage(*arguments)

    damage = module.damage
    monkeypatch.setattr(module, "damage", goes_on)
    assert kept.damage == []


def test_a_folder_that_was_not_finished_being_made_opens_and_is_completed(tmp_path):
    path = tmp_path / "run"
    create(path, CONFIG, {"seed": 0})
    for name in ("summary.json", "SHA256SUMS", "environment.json"):
        (path / name).unlink()
    again = open_run(path)
    assert (again.config, again.summary, again.environment, again.state) == (CONFIG, {}, {}, "stopped")
    again.found({"seed": 3})
    assert again.environment == {"seed": 3}
    assert again.damage == []


def test_a_folder_of_format_1_opens(folder):
    for name in ("SHA256SUMS", "environment.json"):
        (folder.path / name).unlink()
    (folder.path / "summary.json").write_text('{"format": 1, "flows": {"straight": {"result": "successful"}}}')
    old = open_run(folder.path)
    assert (old.format, old.state, old.flows, old.environment) == (1, "finished", ("straight",), {})
    assert old.format < FORMAT
    said = []
    assert resume(folder.path, say=said.append) == folder.path
    assert said == [f"run folder {folder.path} is finished"]
    (folder.path / "summary.json").write_text('{"format": 1, "flows": {}}')
    with pytest.raises(RunError, match="is of format 1, which has no checkpoints"):
        resume(folder.path)


def test_starting_over_removes_runs_and_nothing_else(folder, tmp_path):
    remove_run(tmp_path / "nowhere")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    with pytest.raises(RunError, match=r"has no config\.toml"):
        remove_run(tmp_path / "mine")
    (folder.path / "notes").write_text("mine")
    before = sorted(folder.path.iterdir())
    with pytest.raises(RunError, match="holds notes, which no run wrote"):
        remove_run(folder.path)
    assert sorted(folder.path.iterdir()) == before
    (folder.path / "notes").unlink()
    with folder.locked(), pytest.raises(RunningError):
        remove_run(folder.path)
    remove_run(folder.path)
    assert list(folder.path.iterdir()) == []


def test_litter_of_a_killed_process_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "deep").mkdir()
    with replacing(tmp_path / "deep" / "folder") as temporary:
        temporary.mkdir()
        (temporary / "file").write_text("half")
        (tmp_path / "deep" / f".other{temporary.name[7:]}").write_text("half")
        (tmp_path / ".mine.tmp").write_text("mine")
        kept = temporary.with_name(".folder." + "0" * 32 + ".tmp")
        temporary.rename(kept)
        kept.rename(temporary)
    remove_litter(tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        ".mine.tmp",
        "deep",
        "deep/folder",
        "deep/folder/file",
    ]


def test_a_refusal_of_the_disk_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "config.toml").write_text("")
    with (
        pytest.raises(StorageError, match=r"file/x cannot be written \(Not a directory\): move away the file") as error,
        storing(tmp_path),
    ):
        (tmp_path / "file" / "x").mkdir(parents=True)
    assert "\n" not in str(error.value)
    assert f"`chordflow resume {tmp_path}` goes on" in str(error.value)


@pytest.mark.parametrize("name", ["write", "fsync", "replace"])
def test_a_full_disk_names_the_file_though_the_system_does_not(folder, monkeypatch, name):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write():
        with folder.locked():
            folder.write_progress(line(1))
            folder.write_summary({})

    monkeypatch.setattr(os, name, full)
    with pytest.raises(StorageError, match=r"(jsonl|json) cannot be written \(No space left.*\): free some space"):
        write()


def test_what_is_not_of_the_folder_is_not_said_to_be(folder):
    """A pipe that nobody reads, and a file of the user's own."""
    for error in (BrokenPipeError(errno.EPIPE, "Broken pipe"), FileNotFoundError(errno.ENOENT, "none", "data.npz")):
        with pytest.raises(type(error)), folder.locked():
            raise error


# Making and removing -------------------------------------------------------------------------------------------------


def test_a_folder_is_held_from_its_first_file_on_until_the_run_ends(tmp_path, monkeypatch):
    """What builds the problem takes seconds, in which the folder must not look stopped."""
    states, path = [], tmp_path / "run"

    def build(config):
        states.append(open_run(path).state)
        with pytest.raises(RunningError):
            resume(path)
        (path / "segments").mkdir()  # what goes away may hold folders
        raise ValueError("a mistake")

    monkeypatch.setattr("chordflow.experiment.Setting.build", build)
    with pytest.raises(ValueError, match="a mistake"):
        run(load_config(None, [f"out={path}"]))
    assert states == ["running"]
    assert not path.exists()


def test_two_runs_that_begin_at_once_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(None, ["data.samples=2"])
    monkeypatch.setattr("time.strftime", lambda form: "now")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: _default_out(config.data.name), range(8)))
    assert sorted(path.name for path in made) == sorted(["digits-now", *(f"digits-now-{i}" for i in range(2, 9))])


def test_what_a_run_set_aside_or_did_not_come_to_list_is_removed_with_it(folder):
    for name in ("cost.png", "spectrum-straight.svg", "environment.json.damaged", "straight.nc.damaged", "gram.nc"):
        (folder.path / name).write_text("half")
    remove_run(folder.path)
    assert list(folder.path.iterdir()) == []


# Resume, in this process ---------------------------------------------------------------------------------------------

SMALL = ["data.samples=4", "model.widths=6", "flows=adapted", "saves=5", "checkpoint_seconds=0"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(load_config(None, [*SMALL, f"out={tmp_path_factory.mktemp('whole') / 'run'}"]), say=lambda line: None)


class Stopping:
    """A watcher that interrupts the run in a stride, as SIGKILL would: nothing more is written."""

    class Killed(BaseException):
        pass

    def __init__(self, after):
        self.left = after

    def __call__(self, event):
        self.left -= event["event"] == "metrics"
        if self.left == 0:
            raise self.Killed


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed in its fourth stride, after its third checkpoint."""
    path = tmp_path_factory.mktemp("killed") / "run"
    with pytest.raises(Stopping.Killed):
        run(load_config(None, [*SMALL, f"out={path}"]), say=lambda line: None, watchers=[Stopping(4)])
    assert open_run(path).state == "stopped"
    return path


@pytest.fixture
def stopped(killed, tmp_path):
    return shutil.copytree(killed, tmp_path / "run")


@pytest.fixture
def finished(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def after(path, checkpoint):
    """What is said of going on from one of the last checkpoints, -1 for the last: the fourth stride came to none."""
    entry = open_run(path).progress[checkpoint - 1]
    return f"adapted: goes on at s = {entry['t']:g}, after {entry['steps']} steps"


def assert_ends_as(path, whole):
    one, two = open_run(path), open_run(whole)
    assert one.state == "finished"
    assert one.summary == two.summary
    xarray.testing.assert_identical(*(run.trajectory().drop_vars("seconds") for run in (one, two)))


def test_a_run_goes_on_from_its_last_checkpoint(stopped, whole):
    said, expected = [], after(stopped, -1)
    assert cf.resume(stopped, say=said.append) == stopped
    assert expected in said
    assert_ends_as(stopped, whole)


def test_damage_is_named_and_the_checkpoint_before_it_used(stopped, whole):
    newest = max((stopped / "checkpoints" / "adapted").iterdir())
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1])
    said, expected = [], after(stopped, -2)
    resume(stopped, say=said.append)
    assert any(str(victim) in text and "truncated or damaged" in text for text in said)
    assert expected in said
    assert_ends_as(stopped, whole)


@pytest.mark.slow
def test_without_a_good_checkpoint_the_flow_starts_again(stopped, whole):
    first = stopped / "segments" / "adapted" / "000000.nc"
    first.write_bytes(b"")
    said = []
    resume(stopped, say=said.append)
    assert any(str(first) in text for text in said)
    assert "adapted: there is no checkpoint, it starts at the beginning" in said
    assert_ends_as(stopped, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapted.nc", "summary.json", "cost.svg", "environment.json", "metrics.jsonl"])
def test_a_damaged_file_of_a_finished_run_is_set_aside_and_made_again(finished, whole, name):
    path = finished / name
    path.write_bytes(damaged := path.read_bytes()[:-9])
    if name == "adapted.nc":
        with pytest.raises(RunError, match=r"adapted\.nc is truncated or damaged"):
            open_run(finished).trajectory()
    said = []
    resume(finished, say=said.append)
    assert any(str(path) in text and "damaged" in text for text in said)
    assert_ends_as(finished, whole)
    assert path.with_name(f"{name}.damaged").read_bytes() == damaged, "nothing is thrown away"
    assert resume(finished, say=said.append) == finished
    assert said[-1] == f"run folder {finished} is finished"


def test_another_configuration_is_refused(stopped):
    path = stopped / "config.toml"
    path.write_text(path.read_text().replace("rtol = 1e-07", "rtol = 1e-06"))
    with pytest.raises(RunError, match=r"config\.toml is not what the run began with: restore it"):
        resume(stopped, say=lambda line: None)


@pytest.mark.slow
def test_other_versions_are_said(stopped):
    path = stopped / "environment.json"
    values = json.loads(path.read_text())
    values["versions"]["jax"] = "0.0.1"
    path.write_text(json.dumps(values))
    sums = stopped / "SHA256SUMS"
    sums.write_text("".join(row for row in sums.read_text().splitlines(True) if "environment.json" not in row))
    said = []
    with pytest.raises(Stopping.Killed):
        resume(stopped, say=said.append, watchers=[Stopping(1)])
    assert any("jax 0.0.1 ->" in text for text in said)
    killed = open_run(stopped)
    assert killed.environment["versions"]["jax"] == "0.0.1", "what it was started with"
    ((difference,),) = killed.environment["resumed"]
    assert difference.startswith("jax 0.0.1 -> ")
    assert killed.damage == []


@pytest.mark.slow
def test_starting_over_needs_to_be_told(whole, tmp_path):
    path = tmp_path / "run"
    config = load_config(None, [*SMALL, f"out={path}"])
    with pytest.raises(Stopping.Killed):
        run(config, say=lambda line: None, watchers=[Stopping(2)])
    with pytest.raises(RunError, match=r"another path, `chordflow resume .*` to go on, or --overwrite to start over"):
        run(config)
    run(config, say=lambda line: None, overwrite=True)
    assert_ends_as(path, whole)
    mistaken = load_config(None, [*SMALL, "model.activation=tan", f"out={path}"])
    with pytest.raises(ValueError, match="tanh"):
        run(mistaken, overwrite=True)
    assert open_run(path).state == "finished", "a mistake does not cost the old run"


def test_a_folder_of_another_command_is_not_resumed(tmp_path):
    folder = create(tmp_path / "gram", CONFIG, {"command": "gram"})
    folder.write_dataset("gram", segment(0))
    (folder.path / "gram.nc").write_bytes(b"half")
    with pytest.raises(RunError, match="is of `chordflow gram`, which is not resumed: do it again"):
        resume(folder.path)
    assert (folder.path / "gram.nc").exists(), "nothing is set aside where nothing goes on"
    folder.write_dataset("gram", segment(0))
    folder.seal()
    said = []
    resume(folder.path, say=said.append)
    assert said == [f"run folder {folder.path} is finished"]


@pytest.fixture
def sealed(folder):
    """A finished run of which a flow ended early."""
    folder.write_summary({"flows": {"straight": {"result": "step_limit"}}})
    folder.seal()
    return folder.path


def test_a_finished_run_is_left_with_status_0_whatever_its_flows_came_to(sealed, capsys):
    assert main(["resume", str(sealed)]) == 0
    assert capsys.readouterr().out == f"run folder {sealed} is finished\n"


def test_a_folder_that_is_refused_does_not_keep_others_from_going_on(sealed, tmp_path, capsys):
    assert main(["resume", str(tmp_path / "nowhere"), str(sealed), str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == f"run folder {sealed} is finished\n"
    assert [row.count("chordflow: ") for row in said.err.splitlines()] == [1, 1]


def test_printing_where_nobody_reads_is_said_to_be_that(sealed):
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "chordflow", "resume", str(sealed)]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == "chordflow: stopped: nobody reads what it prints any more\n"


def test_a_request_stops_after_a_checkpoint():
    stop = Stopped(2, "stopped: go on")
    assert (stop.signal_number, str(stop)) == (2, "stopped: go on")
    assert isinstance(stop, KeyboardInterrupt)
