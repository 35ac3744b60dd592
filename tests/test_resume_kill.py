"""Runs that are killed, stopped, or refused by the disk, in processes of their own, end as if nothing had happened."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import xarray

import chordflow as cf

SEED = 20250611
KILLS_IN_PART = 4
WORDS = ["data.samples=12", "model.widths=8", "flows=straight,standard", "saves=9", "checkpoint_seconds=0"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of the processes: they share what they compile, which needs programs without callbacks into Python."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "EQX_ON_ERROR": "nan",
    }
    return {**os.environ, **cache, "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"}


def command(*words):
    return [sys.executable, "-m", "chordflow", *map(str, words)]


def finish(environment, *words, prefix=()):
    words = [*prefix, *command(*words)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def limited(size):
    """Words that start a command with a limit on the bytes of a file.

    The new process sets it on itself: a function that runs between fork and exec (``preexec_fn``) is refused by jax,
    which has threads here as soon as any test of this process has computed something.
    """
    code = (
        "import os, resource, sys; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY)); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", code]


def wait_for(condition, process, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


@contextlib.contextmanager
def going(environment, *words, **options):
    """A run in the background, killed when the block ends if it still goes on."""
    with subprocess.Popen(
        command(*words), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()


# In which part of a run a process is, by what the folder shows, in the order in which they come.
PARTS = {
    "compilation": lambda run: True,
    "strides": lambda run: run.progress,
    "consolidation": lambda run: any((entry["flow"], entry["t"]) == ("straight", 1.0) for entry in run.progress),
    "second flow": lambda run: "straight" in run.flows,
    "figures": lambda run: "standard" in run.flows,
}


def comes_to(path, part):
    """A condition to wait for."""
    return lambda: (path / "config.toml").exists() and PARTS[part](cf.open_run(path))


@pytest.fixture(scope="module")
def whole(environment, tmp_path_factory):
    """A run that nothing happened to, and how many seconds each part takes, with everything compiled before."""
    folder = tmp_path_factory.mktemp("whole")
    assert finish(environment, "run", *WORDS, f"out={folder / 'first'}").returncode == 0
    path, times = folder / "second", []
    with going(environment, "run", *WORDS, f"out={path}") as process:
        for part in PARTS:
            wait_for(comes_to(path, part), process)
            times.append(time.monotonic())
        assert process.wait() == 0
    times.append(time.monotonic())
    assert_same(path, folder / "first")
    return path, {part: end - begin for part, begin, end in zip(PARTS, times, times[1:], strict=False)}


def assert_same(path, other):
    """All numbers of two finished runs are equal bit for bit, but seconds; and nothing is left over."""
    one, two = cf.open_run(path), cf.open_run(other)
    assert one.state == two.state == "finished"
    assert one.damage == two.damage == []
    assert one.summary == two.summary
    assert one.datasets == two.datasets == ("standard", "straight")
    for name in one.datasets:
        left, right = (run.dataset(name).drop_vars("seconds") for run in (one, two))
        xarray.testing.assert_identical(left, right)
        for variable in left.variables:
            assert left[variable].to_numpy().tobytes() == right[variable].to_numpy().tobytes(), (name, variable)
    names = [{entry.name for entry in folder.iterdir()} for folder in (Path(path), Path(other))]
    assert names[0] == names[1]
    for figure in Path(path).glob("*.svg"):
        assert figure.read_bytes() == (Path(other) / figure.name).read_bytes()


@pytest.fixture(scope="module", autouse=True)
def heard():
    """SIGINT is heard by the processes started here: jobs in the background of a shell inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def killed(environment, path, part, seconds, again):
    """Where a run was that is killed so many seconds after it came to a part; ``again``: and its resume, too."""
    with going(environment, "run", *WORDS, f"out={path}") as process:
        wait_for(comes_to(path, part), process)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    run = cf.open_run(path)
    assert run.state in ("stopped", "finished")
    assert run.damage == []
    found = [name for name, reached in PARTS.items() if reached(run)][-1]
    if again:
        with going(environment, "resume", path) as process:
            time.sleep(again)
            process.send_signal(signal.SIGKILL)
    return found


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_ends_with_the_same_bits(environment, whole, tmp_path):
    (reference, seconds), rng = whole, random.Random(SEED)
    jobs = [
        (environment, tmp_path / f"{i}-{part}", part, (i + rng.random()) / KILLS_IN_PART * seconds[part], again)
        for part in PARTS
        for i in range(KILLS_IN_PART)
        for again in [rng.random() * sum(seconds.values()) if i == 1 else 0]
    ]
    assert len(jobs) == 20
    with ThreadPoolExecutor(2) as pool:
        found = set(pool.map(lambda job: killed(*job), jobs))
        # Where a busy machine let a short part slip by, it is killed as it begins.
        found |= {killed(environment, tmp_path / f"at-{part}", part, 0, 0) for part in set(PARTS) - found}
        assert found == set(PARTS)
        halves = [job[1] for job in jobs[::2]], [job[1] for job in jobs[1::2]]
        for done in pool.map(lambda paths: finish(environment, "resume", *paths), halves):
            assert done.returncode == 0, done.stderr
    for job in jobs:
        assert_same(job[1], reference)


@pytest.mark.slow
def test_a_run_that_is_killed_as_it_compiles_in_earnest_ends_with_the_same_bits(environment, whole, tmp_path):
    """The program that users run: with its checks, which call back into Python, and nothing of it compiled before."""
    bare = {
        key: value for key, value in environment.items() if key not in ("JAX_COMPILATION_CACHE_DIR", "EQX_ON_ERROR")
    }
    path = tmp_path / "run"
    with going(bare, "run", *WORDS, f"out={path}") as process:
        assert process.stdout is not None
        assert any("expected" in line for line in process.stdout)
        time.sleep(random.Random(SEED).random())
        assert not (path / "metrics.jsonl").exists(), "it compiles"
        process.send_signal(signal.SIGKILL)
    assert cf.open_run(path).state == "stopped"
    assert finish(bare, "resume", path).returncode == 0
    assert_same(path, whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_keeps_a_checkpoint_and_says_how_to_go_on(environment, whole, tmp_path, number):
    path = tmp_path / "run"
    words = [*WORDS[:-1], "checkpoint_seconds=1000"]  # the checkpoint is that of the request
    with going(environment, "run", *words, f"out={path}") as process:
        wait_for(lambda: (path / "metrics.jsonl").exists(), process)
        process.send_signal(number)
        said, complaint = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    assert "stopping at the next good moment" in said
    assert f"`chordflow resume {path}` goes on" in complaint
    assert complaint.count("\n") == 1
    assert len(list((path / "checkpoints").glob("*/0*"))) == 1
    entry = cf.open_run(path).progress[-1]
    done = finish(environment, "resume", path)
    assert done.returncode == 0
    assert f"{entry['flow']}: goes on at" in done.stdout
    assert f"= {entry['t']:g}, after {entry['steps']} steps" in done.stdout
    end, reference = cf.open_run(path), cf.open_run(whole[0])
    assert end.summary == reference.summary


@pytest.mark.slow
def test_stopping_twice_stops_at_once(environment, tmp_path):
    path = tmp_path / "run"
    with going(environment, "run", *WORDS, "data.samples=30", "model.widths=64", f"out={path}") as process:
        wait_for((path / "summary.json").exists, process)
        wait_for(lambda: (path / "environment.json").exists(), process)
        assert process.stdout is not None
        assert any("expected" in line for line in process.stdout)  # it is compiling now, for seconds
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        assert time.monotonic() - start < 1
    assert process.returncode == 130
    assert cf.open_run(path).state == "stopped"


@pytest.mark.slow
def test_two_processes_do_not_write_one_folder(environment, tmp_path):
    path = tmp_path / "run"
    with going(environment, "run", *WORDS, f"out={path}") as process:
        wait_for((path / "metrics.jsonl").exists, process)
        assert cf.open_run(path).state == "running"
        refused = finish(environment, "resume", path)
        assert process.poll() is None
    assert refused.returncode == 2
    assert "is being written by another process" in refused.stderr
    assert cf.open_run(path).state == "stopped"


@pytest.mark.slow
def test_the_stream_of_metrics_is_read_while_the_run_goes_on_and_json_says_the_same(environment, tmp_path):
    path = tmp_path / "run"
    seen = []
    with going(environment, "run", "--json", *WORDS, f"out={path}") as process:
        wait_for((path / "metrics.jsonl").exists, process)
        while process.poll() is None:
            seen.append(len(cf.open_run(path).progress))
            time.sleep(0.01)
        assert process.stdout is not None
        lines = [json.loads(line) for line in process.stdout]
    assert process.returncode == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 3, "the stream grows while the run goes on"
    events = [line["event"] for line in lines if "event" in line]
    assert events == ["start", "flow", "flow_end", "flow", "flow_end", "end"]
    stream = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line for line in lines if "event" not in line] == stream
    assert lines[-1]["results"] == {"straight": "successful", "standard": "successful"}


@pytest.mark.slow
@pytest.mark.parametrize("limit", [3_000, 30_000, 120_000])
def test_a_limit_on_the_size_of_files_is_one_clear_line_and_the_run_goes_on_without_it(
    environment, whole, tmp_path, limit
):
    path = tmp_path / "run"
    # All is compiled, and nothing is written into the cache, which would meet the limit, too.
    stopped = finish(environment, "run", *WORDS, f"out={path}", prefix=limited(limit))
    assert stopped.returncode == 1
    assert stopped.stderr.count("\n") == 1, stopped.stderr
    assert "cannot be written (File too large): raise the limit" in stopped.stderr
    assert f"`chordflow resume {path}` goes on" in stopped.stderr
    run = cf.open_run(path)
    assert run.state == "stopped"
    assert run.damage == []
    assert finish(environment, "resume", path).returncode == 0
    assert_same(path, whole[0])


class TinyDisk:
    """A disk of 1 MiB where only processes in a namespace of its own see it, which ends with the one that holds it."""

    def __init__(self, folder, user):
        script = 'mount -t tmpfs -o size=1m tmpfs "$0" && echo ready && exec cat'
        self.holder = subprocess.Popen(
            ["unshare", "--mount", *(["--user", "--map-root-user"] if user else []), "sh", "-c", script, str(folder)],
            **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE),
            text=True,
        )
        assert self.holder.stdout is not None
        self.is_there = self.holder.stdout.readline() == "ready\n"
        self.there = folder
        self.here = Path(f"/proc/{self.holder.pid}/root", *folder.parts[1:])
        namespaces = ["--mount", *(["--user", "--preserve-credentials"] if user else [])]
        self.prefix = ["nsenter", "--target", str(self.holder.pid), *namespaces]

    def resize(self, size):
        subprocess.run([*self.prefix, "mount", "-o", f"remount,size={size}", str(self.there)], check=True)

    def close(self):
        _ = self.holder.communicate()


@pytest.fixture
def tiny_disk(tmp_path):
    """Mounted by root, or by a user who may be root of a namespace."""
    for user in (False, True) if shutil.which("unshare") else ():
        with contextlib.closing(TinyDisk(tmp_path, user)) as disk:
            if disk.is_there:
                yield disk
                return
    (pytest.fail if "CI" in os.environ else pytest.skip)("neither root nor this user may mount a disk here")


@pytest.mark.slow
def test_a_full_disk_is_one_clear_line_and_the_run_goes_on_once_there_is_space(environment, whole, tiny_disk):
    for filler in (2**20 - 40_000, 2**20 - 140_000, 2**20 - 400_000):
        out, path = (folder / f"run-{filler}" for folder in (tiny_disk.there, tiny_disk.here))
        (tiny_disk.here / "filler").write_bytes(b"x" * filler)
        stopped = finish(environment, "run", *WORDS, f"out={out}", prefix=tiny_disk.prefix)
        assert stopped.returncode == 1, filler
        assert stopped.stderr.count("\n") == 1, stopped.stderr
        assert "No space left on device): free some space" in stopped.stderr
        run = cf.open_run(path)
        assert run.state == "stopped"
        assert run.damage == []
        assert not list(path.rglob("*.tmp")), "nothing half is left"
        tiny_disk.resize("64m")
        assert finish(environment, "resume", out, prefix=tiny_disk.prefix).returncode == 0
        assert_same(path, whole[0])
        shutil.rmtree(path)
        tiny_disk.resize("1m")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoints", "segments", "checkpoints/standard"])
def test_a_file_where_a_folder_must_go_is_named_and_the_run_goes_on_without_it(environment, whole, tmp_path, name):
    path = tmp_path / "run"
    with going(environment, "run", *WORDS, f"out={path}") as process:
        wait_for((path / "config.toml").exists, process)
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("in the way")
        _, complaint = process.communicate(timeout=300)
    assert process.returncode == 1
    assert complaint.count("\n") == 1, complaint
    assert f"{path / name}" in complaint
    assert "move away the file that is where a folder must go" in complaint
    assert (path / name).read_text() == "in the way", "what is the user's is left"
    assert cf.open_run(path).damage == []
    (path / name).unlink()
    assert finish(environment, "resume", path).returncode == 0
    assert_same(path, whole[0])
