from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnssl.system import resources
from nnssl.system.resources import available_cpus, cpu_count, free_memory_bytes, oom_kills, worker_processes


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Pretend sixteen CPUs, of which this process may use twelve, without a control group; return its folder."""
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.setattr(resources, "CGROUPS", tmp_path)
    monkeypatch.setattr(resources, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.delenv("nnUNet_def_n_proc", raising=False)
    return tmp_path


def test_affinity_limits_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_count() == available_cpus() == 12
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cpu_count() == 16
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_count() == 1


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 12), ("400000 100000", 4), ("350000 100000", 4), ("5000 100000", 1), ("9900000 100000", 12)],
)
def test_a_quota_limits_the_cpus(machine: Path, quota: str, expected: int) -> None:
    (machine / "cpu.max").write_text(f"{quota}\n")
    (machine / "own").write_text("1:cpu:/elsewhere\n0::/\n")
    assert cpu_count() == expected


def test_the_smallest_quota_of_nested_groups_counts(machine: Path) -> None:
    own = machine / "job" / "step"
    own.mkdir(parents=True)
    (machine / "own").write_text("0::/job/step\n")
    for folder, quota in ((machine, "max"), (own.parent, "300000"), (own, "800000")):
        (folder / "cpu.max").write_text(f"{quota} 100000\n")
    assert cpu_count() == 3


@pytest.mark.parametrize(("quota", "expected"), [("200000", 2), ("-1", 12), ("nonsense", 12)])
def test_quota_of_control_groups_version_1(machine: Path, quota: str, expected: int) -> None:
    (machine / "cpu").mkdir()
    (machine / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (machine / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert cpu_count() == expected


def test_nnunets_variable_sets_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected, at_most_one_a_cpu in (("17", 17, 12), ("2", 2, 2), ("0", 1, 1), ("many", 12, 8)):
        monkeypatch.setenv("nnUNet_def_n_proc", value)
        assert (available_cpus(), worker_processes()) == (expected, at_most_one_a_cpu)
    assert cpu_count() == 12


def test_without_the_variable_nnunet_takes_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_processes() == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert worker_processes() == 3


def test_free_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resources, "MEMORY_FACTS", tmp_path / "meminfo")
    assert free_memory_bytes() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:   5000 kB\n")
    assert free_memory_bytes() == 5000 * 1024


def test_the_kernels_count_of_processes_that_it_killed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(resources, "MEMORY_EVENTS", tmp_path / "vmstat")
    assert oom_kills() is None
    (tmp_path / "vmstat").write_text("nr_free_pages 7\noom_kill 12\n")
    assert oom_kills() == 12
