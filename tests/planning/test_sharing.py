"""Plans of one data set share preprocessed cases: one copy on disk, and never a wrong one."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnssl.errors import DataError, EnvironmentProblem
from nnssl.names import FACTS_FILE
from nnssl.planning import preprocessing
from nnssl.planning.api import ConfigurationPlan, plan
from nnssl.planning.manifest import effective_settings
from nnssl.planning.preprocessing import check_preprocessed
from nnssl.system.locks import hold_lock
from tests.planning.raw_for_tests import read_json, write_json, write_scan
from tests.planning.stock_nnunet import run_stock
from tests.planning.test_preprocessing import CASES, SPLIT, UNLABELLED, identical, load

TWO, THREE = "nnUNetPlans@lab2_3d_fullres", "nnUNetPlans@lab3_3d_fullres"


def planned(budget: int | None, **options: object) -> ConfigurationPlan:
    options = {"trainer": "SupervisedTrainer", "num_processes": 1, "num_processes_fingerprint": 1} | options
    options = {"target_spacing_mm": (1, 1, 1)} | options
    return plan(906, ("3d_fullres",), labelled=budget, **options).configurations["3d_fullres"]


@pytest.fixture
def data(data):
    write_json(data.raw / "splits_final.json", [SPLIT])
    return data


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def shared(first: Path, second: Path) -> set[str]:
    """Return the names of the files that are the same file in both folders."""
    ours, theirs = inodes(first), inodes(second)
    return {name for name in ours if ours[name] == theirs.get(name)}


def files_of(*cases: str) -> set[str]:
    return {f"{case}{ending}" for case in cases for ending in (".pkl", ".b2nd", "_seg.b2nd")}


def check(data, budget: int) -> None:
    """Check the preprocessed cases as training does."""
    plans = read_json(data.preprocessed / f"nnUNetPlans@lab{budget}.json")
    hidden = CASES[budget:4]
    seen = [case for case in CASES if case not in hidden]
    check_preprocessed(data.preprocessed, plans, "3d_fullres", seen, [*hidden, *UNLABELLED])


def test_a_second_budget_makes_only_what_its_labels_change(data) -> None:
    first = planned(2)
    assert (first.preprocessed, first.shared) == (9, 0)
    second = planned(3)
    assert (second.preprocessed, second.shared) == (1, 8)
    root = data.preprocessed
    assert shared(root / TWO, root / THREE) == files_of("case_0", "case_1", "case_4", "case_5")
    hidden = root / f"{TWO}_unlabelled"
    assert shared(hidden, root / f"{THREE}_unlabelled") == files_of("case_3", *UNLABELLED)
    assert shared(hidden, root / THREE) == {"case_2.b2nd"}
    check(data, 2)
    check(data, 3)
    kept = {name: [load(root / name, case) for case in sorted(nnUNetDatasetBlosc2.get_identifiers(str(root / name)))]
            for name in (THREE, f"{THREE}_unlabelled")}  # fmt: skip
    shutil.rmtree(root)
    assert planned(3).preprocessed == 9
    for name, cases in kept.items():
        again = [load(root / name, case) for case in sorted(nnUNetDatasetBlosc2.get_identifiers(str(root / name)))]
        assert all(all(map(identical, *pair)) for pair in zip(cases, again, strict=True))


@pytest.mark.parametrize(("channel", "options", "number"), [
    ("CT", {}, 0),
    ("noNorm", {}, 8),
    ("MRI", {"target_spacing_mm": (1.5, 1, 1)}, 0),
    ("MRI", {"normalisation": "shared"}, 0),
    ("MRI", {"clean": True}, 0),
])  # fmt: skip
def test_only_the_same_voxels_are_shared(data, channel: str, options: dict[str, object], number: int) -> None:
    content = read_json(data.raw / "dataset.json")
    write_json(data.raw / "dataset.json", content | {"channel_names": {"0": channel}})
    planned(2)
    second = planned(3, **options)
    assert (second.preprocessed, second.shared) == (9 - number, number)
    found = shared(data.preprocessed / TWO, data.preprocessed / THREE)
    assert found == (files_of("case_0", "case_1", "case_4", "case_5") if number else set())
    check(data, 3)


def test_a_changed_scan_is_made_once(data) -> None:
    planned(2)
    planned(3)
    write_scan(data.raw / "imagesUn", "un_1", 300)
    first, second = planned(2), planned(3)
    assert (first.preprocessed, first.shared, second.preprocessed, second.shared) == (1, 0, 0, 1)
    hidden = [data.preprocessed / f"{name}_unlabelled" for name in (TWO, THREE)]
    assert files_of("un_1") <= shared(*hidden)


def overwrite(path: Path) -> None:
    """Change some bytes of a file in place, as a program does that opens the file for writing."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\1\2\3\4" * 20)
    os.utime(path)


@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd", ".pkl"])
def test_a_write_into_a_shared_file_is_seen_under_every_plan(data, caplog, ending: str) -> None:
    planned(2)
    planned(3)
    overwrite(data.preprocessed / f"{TWO}_unlabelled" / f"un_1{ending}")
    for budget in (2, 3):
        with pytest.raises(DataError, match="changed since they were preprocessed") as caught:
            check(data, budget)
        assert caught.value.why == "un_1"
        assert f"-labelled {budget}" in caught.value.run
    first = planned(2)
    assert (first.preprocessed, first.shared) == (1, 0)
    assert "un_1" in caplog.text
    check(data, 2)
    with pytest.raises(DataError):
        check(data, 3)
    second = planned(3)
    assert (second.preprocessed, second.shared) == (0, 1)
    check(data, 3)


def test_a_change_beside_our_knowledge_of_times_is_found_by_verify(data) -> None:
    planned(2)
    path = data.preprocessed / TWO / "case_0.b2nd"
    before = path.stat()
    overwrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert planned(2).preprocessed == 0
    assert planned(2, verify=True).preprocessed == 1


def test_a_file_system_without_hard_links_gets_copies_and_says_so_once(data, monkeypatch, caplog) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    planned(2)
    monkeypatch.setattr(os, "link", refuse)
    second = planned(3)
    assert (second.preprocessed, second.shared) == (1, 8)
    assert not shared(data.preprocessed / TWO, data.preprocessed / THREE)
    assert [record.message.count("no hard links") for record in caplog.records].count(1) == 1
    check(data, 3)
    assert planned(3).preprocessed == 0


def test_a_stop_while_linking_leaves_whole_cases(data, monkeypatch) -> None:
    planned(2)
    real, calls = os.link, []

    def stop(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 5:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", stop)
        with pytest.raises(KeyboardInterrupt):
            planned(3)
    assert nnUNetDatasetBlosc2.get_identifiers(str(data.preprocessed / THREE)) == ["case_0"]
    second = planned(3)
    assert (second.preprocessed, second.shared) == (1, 8)
    check(data, 3)


def test_a_twin_that_goes_or_changes_meanwhile_is_not_taken(data, monkeypatch) -> None:
    planned(2)
    real = os.link

    def spoilt(source: Path, target: Path) -> None:
        if source.name == "case_0.pkl":
            source.unlink()
        real(source, target)
        if source.name == "case_1.b2nd":
            overwrite(source)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", spoilt)
        second = planned(3)
    assert (second.preprocessed, second.shared) == (3, 6)
    check(data, 3)
    shutil.rmtree(data.preprocessed / TWO)
    check(data, 3)


@pytest.mark.parametrize("facts", [True, False])
def test_a_copied_data_set_is_compared_and_kept(data, facts: bool, caplog) -> None:
    planned(2)
    copy = data.preprocessed.with_name("copy")
    shutil.copytree(data.preprocessed, copy, copy_function=shutil.copyfile)
    shutil.rmtree(data.preprocessed)
    copy.rename(data.preprocessed)
    if not facts:
        (data.preprocessed / FACTS_FILE).unlink()
    check(data, 2)
    assert planned(2).preprocessed == 0
    second = planned(3)
    assert (second.preprocessed, second.shared) == (1, 8)
    assert "changed" not in caplog.text


def test_the_manifest_of_an_earlier_version_counts(data) -> None:
    planned(2)
    for name in (TWO, f"{TWO}_unlabelled"):
        path = data.preprocessed / f"{name}.manifest.json"
        content = read_json(path)
        plans = read_json(data.preprocessed / "nnUNetPlans@lab2.json")
        statistics = "foreground_intensity_properties_per_channel"
        content["settings"][statistics] = plans[statistics]
        content["cases"] = {case: entry["source"] for case, entry in content["cases"].items()}
        write_json(path, content)
    (data.preprocessed / FACTS_FILE).unlink()
    check(data, 2)
    assert planned(2).preprocessed == 0
    assert planned(3).shared == 8


def test_one_command_at_a_time_changes_a_folder(data, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(preprocessing, "LOCK_WAIT_S", 0.1)
    planned(2, run_preprocessing=False)
    with hold_lock(data.preprocessed / f".{TWO}.lock", "", where=data.preprocessed, run=""):
        with pytest.raises(EnvironmentProblem, match="another command preprocesses the same cases"):
            planned(2)
        assert planned(3).preprocessed == 9
    assert planned(2).shared == 8
    assert not list(data.preprocessed.glob(".*"))


PLAN = """
import sys
from nnssl.planning.api import plan
from tests.planning.stock_nnunet import few_intensity_samples
few = {"num_processes": 1, "num_processes_fingerprint": 1}
with few_intensity_samples():
    plan(906, ("3d_fullres",), labelled=int(sys.argv[1]), hardware="cpu", **few)
"""


def test_commands_for_two_budgets_at_once(data) -> None:
    commands = [subprocess.Popen([sys.executable, "-c", PLAN, str(budget)], cwd=Path(__file__).parents[2])
                for budget in (2, 3)]  # fmt: skip
    assert [command.wait() for command in commands] == [0, 0]
    for budget in (2, 3):
        check(data, budget)
        again = planned(budget, hardware="cpu", target_spacing_mm=None)
        assert (again.preprocessed, again.shared) == (0, 0)
    assert not list(data.preprocessed.glob(".*"))


def settings(scheme: str, preprocessor: str = "DefaultPreprocessor", **statistics: float) -> dict[str, object]:
    return {
        "normalization_schemes": [scheme],
        "preprocessor_name": preprocessor,
        "foreground_intensity_properties_per_channel": {"0": statistics},
    }


@pytest.mark.parametrize(("scheme", "used"), [
    ("ZScoreNormalization", set()),
    ("RescaleTo01Normalization", set()),
    ("RGBTo01Normalization", set()),
    ("NoNormalization", set()),
    ("CTNormalization", {"mean", "std", "percentile_00_5", "percentile_99_5"}),
])  # fmt: skip
def test_the_statistics_that_count_are_those_that_nnunet_uses(scheme: str, used: set[str]) -> None:
    import nnunetv2.preprocessing.normalization.default_normalization_schemes as schemes

    values = dict.fromkeys(("mean", "std", "percentile_00_5", "percentile_99_5", "min", "max", "median"), 1.0)
    kept = effective_settings(settings(scheme, **values))["foreground_intensity_properties_per_channel"]["0"]
    assert set(kept) == used
    read = set()

    class Noted(dict):
        def __getitem__(self, name: str) -> float:
            read.add(name)
            return super().__getitem__(name)

    image = np.arange(8.0, dtype=np.float32).reshape(2, 2, 2)
    getattr(schemes, scheme)(use_mask_for_norm=False, intensityproperties=Noted(values)).run(image, None)
    assert read == used


@pytest.mark.parametrize("case", [settings("Mine", mean=1.0), settings("ZScoreNormalization", "Mine", mean=1.0)])
def test_all_statistics_count_where_foreign_code_may_use_them(case: dict[str, object]) -> None:
    assert effective_settings(case) == case
    assert json.dumps(effective_settings(case)) == json.dumps(case)


def test_stock_preprocessing_of_one_plan_leaves_the_others(data) -> None:
    planned(None)
    assert planned(2).shared == 7
    name = "nnUNetPlans_3d_fullres"
    assert shared(data.preprocessed / name, data.preprocessed / TWO) == {
        *files_of("case_0", "case_1", "case_4", "case_5")
    }
    before = inodes(data.preprocessed / TWO)
    run_stock("repeat")
    assert not shared(data.preprocessed / name, data.preprocessed / TWO)
    assert inodes(data.preprocessed / TWO) == before
    check(data, 2)
    assert (planned(None).preprocessed, planned(2).preprocessed) == (0, 0)
