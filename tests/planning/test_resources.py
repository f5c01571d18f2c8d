import dataclasses

import pytest

from nnssl.data.raw import read_raw_dataset
from nnssl.data.scans import ScanFacts
from nnssl.errors import UsageError
from nnssl.planning import resources
from nnssl.planning.resources import available_cpus, default_processes, processes_for

SCAN = ScanFacts("a", "labelled", (10, 20, 30), (2.0, 1.0, 1.0), "RAS", "", "", ())


@pytest.mark.parametrize(("given", "numbers"), [(None, [None, None]), (3, [3, 3]), ([3], [3, 3]), ([3, 1], [3, 1])])
def test_processes_are_given_for_all_or_for_each(given, numbers):
    assert list(processes_for(given, ["2d", "3d_fullres"]).values()) == numbers


@pytest.mark.parametrize("given", [0, [1, 2, 3], [-1, 2]])
def test_wrong_numbers_of_processes(given):
    with pytest.raises(UsageError, match="-np"):
        processes_for(given, ["2d", "3d_fullres"])


def test_nnunets_variable_sets_the_number_of_processes(monkeypatch):
    monkeypatch.setenv("nnUNet_def_n_proc", "17")
    assert available_cpus() == 17
    monkeypatch.delenv("nnUNet_def_n_proc")
    assert available_cpus() >= 1


def test_little_memory_means_few_processes(data, monkeypatch):
    raw = read_raw_dataset(906)
    large = dataclasses.replace(SCAN, shape=(500, 512, 512))
    monkeypatch.setenv("nnUNet_def_n_proc", "8")
    monkeypatch.setattr(resources, "free_memory_bytes", lambda: 20_000_000_000)
    assert default_processes(raw, [SCAN]) == 8
    assert default_processes(raw, [SCAN, large]) == 2
    assert default_processes(raw, [SCAN, large], (0.5, 0.5, 0.5)) == 1
    monkeypatch.setattr(resources, "free_memory_bytes", lambda: None)
    assert default_processes(raw, [large]) == 8
    assert default_processes(raw, [], (1.0, 1.0)) == 8


def test_free_memory_is_a_number_where_the_system_says_it():
    free = resources.free_memory_bytes()
    assert free is None or free > 1_000_000
