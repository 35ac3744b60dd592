"""What a crash leaves of a run folder: at every change of a name, and how names and bytes follow each other on disk."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray
from matplotlib.figure import Figure

from chordflow.config import load_config
from chordflow.experiment import resume, run
from chordflow.files import is_litter
from chordflow.record import create, open_run
from chordflow.recording import saves_of
from chordflow.setting import Setting

SMALL = ["data.name=diabetes", "data.samples=2", "model.widths=2", "flows=adapted", "saves=3", "checkpoint_seconds=0"]


def quiet(line):
    del line


class Disk:
    """Notes in which order folders are made, names change and bytes are waited for, and holds that order to its law."""

    def __init__(self, monkeypatch):
        self.synced, self.owed, self.replaced = set(), set(), []
        self._system = {name: getattr(os, name) for name in ("fsync", "replace", "link", "mkdir")}
        for name in self._system:
            monkeypatch.setattr(os, name, getattr(self, name))

    def fsync(self, descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        self.synced.add(path)
        self.owed.discard(path)
        self._system["fsync"](descriptor)

    def replace(self, source, target, how="replace", **options):
        if not self.unfinished(target):
            assert not self.owed, f"{target} is there before the names in {self.owed}"
            parts = [Path(source), *Path(source).rglob("*")]
            assert set(parts) <= self.synced, f"{target} has its name before its bytes are on disk"
            self.synced |= {target / part.relative_to(source) for part in parts}
            self.owed.add(target.parent)
            self.replaced.append(target.name)
        self._system[how](source, target, **options)

    def link(self, source, target, **options):
        self.replace(source, target, "link", **options)

    def mkdir(self, path, *options, **more):
        self._system["mkdir"](path, *options, **more)
        if not self.unfinished(path):
            self.owed.add(Path(path).parent)

    @staticmethod
    def unfinished(path):
        """Whether it lies in what has no name yet, all of which is waited for when it gets one."""
        return any(map(is_litter, (Path(path), *Path(path).parents)))


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def test_bytes_are_on_disk_before_their_name_and_names_before_the_next(tmp_path, disk):
    dataset = xarray.Dataset({"cost": ("time", np.zeros(3))})
    folder = create(tmp_path / "runs" / "run", {"flows": ["straight"]}, {"seed": 0})
    progress = folder.of_flow("straight")
    for number in range(3):
        folder.write_progress({"flow": "straight", "steps": number, "seconds": 0.0})
        assert folder.path / "metrics.jsonl" in disk.synced
        assert folder.path not in disk.owed
        progress.keep(number, {"t": np.zeros(3)}, number + 1, dataset)
    folder.write_dataset("straight", dataset)
    folder.write_summary({"cost": 0.0})
    folder.set_aside(["straight.nc"])
    folder.seal()
    assert not disk.owed
    assert {"config.toml", "SHA256SUMS", "000000.nc", "000002", "straight.nc", "summary.json"} <= set(disk.replaced)


def test_a_new_stream_of_metrics_has_its_name_on_disk(tmp_path, disk):
    folder = create(tmp_path / "run", {})
    disk.synced.clear()
    folder.write_progress({"flow": "straight", "steps": 1, "seconds": 0.0})
    assert disk.synced == {folder.path, folder.path / "metrics.jsonl"}
    disk.synced.clear()
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write('{"flow"')
    folder.mend()
    assert disk.synced == {folder.path / "metrics.jsonl"}


@pytest.mark.slow
def test_a_run_killed_at_any_change_of_a_name_ends_with_the_same_bits(tmp_path, monkeypatch):
    """What is in the folder at that moment is all that a killed process leaves, so each is copied, and resumed."""
    config = load_config(None, [*SMALL, "t1=1", "rtol=1e-4", f"out={tmp_path / 'whole'}"])
    setting = Setting.build(config)
    saves = saves_of(setting)
    # One program for all: compilation is not what is tested here, nor what the figures look like.
    monkeypatch.setattr("chordflow.experiment.Setting.build", lambda config: setting)
    monkeypatch.setattr("chordflow.experiment.saves_of", lambda setting: saves)
    monkeypatch.setattr("chordflow.experiment.draw", lambda runs: {"cost": Figure()})
    replace, moments, left = os.replace, [], []

    def copying(source, target, **options):
        if not Disk.unfinished(target):
            moments.append(Path(target).relative_to(tmp_path / "whole").as_posix())
            left.append(shutil.copytree(tmp_path / "whole", tmp_path / str(len(left))))
        replace(source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", copying)
        whole = open_run(run(config, say=quiet))
    assert moments[:3] == ["environment.json", "SHA256SUMS", "summary.json"], "config.toml is the first of its name"
    checkpoints = [name for name in moments if name.startswith("checkpoints/")]
    assert len(checkpoints) >= 3
    behind = moments[moments.index(checkpoints[-1]) :]
    names = [name for name in behind if name != "SHA256SUMS"]
    assert names == [checkpoints[-1], "adapted.nc", "summary.json", "summary.json", "cost.png", "cost.svg"]
    assert behind[-1] == "SHA256SUMS", "what finishes it"
    for moment, path in zip(moments, left, strict=True):
        killed = open_run(path)
        assert killed.state == "stopped"
        assert killed.damage == [], moment
        resume(path, say=quiet)
        assert (killed.state, killed.damage) == ("finished", []), moment
        assert killed.summary == whole.summary, moment
        one, two = (found.trajectory().drop_vars("seconds") for found in (killed, whole))
        xarray.testing.assert_identical(one, two)
        for name in one.variables:
            assert one[name].to_numpy().tobytes() == two[name].to_numpy().tobytes(), (moment, name)
        assert {entry.name for entry in path.iterdir()} == {entry.name for entry in whole.path.iterdir()}, moment
