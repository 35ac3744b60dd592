"""What is available to a process: its own limit, the machine's, or that of its control groups, whichever is least."""

import pytest

from chordflow import memory
from chordflow.memory import available_memory, require_memory

GIB = 2**30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 8 GiB free, whose control groups a test writes itself."""
    monkeypatch.delenv("CHORDFLOW_MEMORY_LIMIT", raising=False)
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal:  99 kB\nMemAvailable:   {8 * GIB // 1024} kB\n")

    def belongs_to(*lines):
        (tmp_path / "proc" / "self" / "cgroup").write_text("\n".join(lines) + "\n")

    def group(path, limit, use, reclaimable, version=2):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        counter = "inactive_file" if version == 2 else "total_inactive_file"
        folder = tmp_path / "cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{use}\n")
        (folder / "memory.stat").write_text(f"anon 3\n{counter} {reclaimable}\n")

    return belongs_to, group


def test_without_groups_it_is_the_machines_free_memory(machine):
    assert available_memory() == 8 * GIB


def test_a_group_of_version_2_leaves_its_limit_less_what_is_in_use(machine):
    belongs_to, group = machine
    belongs_to("0::/jobs/7")
    group("jobs/7", 4 * GIB, 3 * GIB, GIB // 2)
    assert available_memory() == 3 * GIB // 2


def test_a_group_above_counts_too(machine):
    belongs_to, group = machine
    belongs_to("0::/jobs/7")
    group("jobs/7", "max", 3 * GIB, 0)
    group("jobs", 6 * GIB, 5 * GIB, 0)
    assert available_memory() == GIB


def test_a_group_of_version_1_whose_path_is_the_hosts(machine):
    belongs_to, group = machine
    belongs_to("5:cpu,cpuacct:/docker/ab", "4:hugetlb,memory:/docker/ab", "0::/")
    group("memory", 2 * GIB, GIB, 0, version=1)
    assert available_memory() == GIB


def test_no_limit_is_the_machines_free_memory(machine):
    belongs_to, group = machine
    belongs_to("4:memory:/", "0::/")
    group("memory", 2**63 - 4096, GIB, 0, version=1)
    group("", "max", GIB, 0)
    assert available_memory() == 8 * GIB


def test_a_full_group_leaves_nothing(machine):
    belongs_to, group = machine
    belongs_to("0::/")
    group("", GIB, 2 * GIB, 0)
    assert available_memory() == 0
    with pytest.raises(MemoryError, match=r"the moon needs 1.00 GiB but 0.00 GiB are available: stay at home"):
        require_memory(GIB, "the moon", "stay at home")


def test_a_limit_of_ones_own_is_what_counts(machine, monkeypatch):
    monkeypatch.setenv("CHORDFLOW_MEMORY_LIMIT", "100")
    assert available_memory() == 100


def test_where_nothing_is_known_nothing_is_refused(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROC", tmp_path / "elsewhere")
    assert available_memory() is None
    require_memory(2**80, "the moon", "stay at home")
