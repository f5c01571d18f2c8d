from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.cli.convert import main as convert
from nnssl.data.protocols import (
    FOLDER,
    Protocol,
    ProtocolCase,
    budget_of,
    find_protocol,
    is_of_protocol,
    protocol_fold,
    protocol_splits,
    read_protocol,
)
from nnssl.data.raw import read_raw_dataset
from nnssl.data.splits import LabelBudget, check_splits, fold_cases
from nnssl.errors import DataError, UsageError
from nnssl.planning.scope import make_scope, settle_splits, write_splits
from nnssl.training import api as training

FILES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_consistent(path: Path) -> None:
    protocol = read_protocol(path)
    assert protocol.source
    assert protocol.budgets
    assert bool(protocol.train) != bool(protocol.rule)
    for name, budget in zip(protocol.names, protocol.budgets, strict=True):
        assert find_protocol(name) == (protocol.of_budget(name, budget), budget)
        assert not protocol.train or LabelBudget.parse(budget).count(len(protocol.train)) <= len(protocol.train)


SIZES = {
    "acdc": (70, 10, 20),
    "la": (80, 0, 20),
    "pancreas_ct": (61, 0, 19),
    "pancreas_ct_luseg": (61, 0, 19),
    "brats2019": (250, 25, 60),
    "synapse": (20, 4, 6),
    "synapse_dhc": (20, 4, 6),
    "synapse_transunet": (18, 0, 12),
    "amos": (216, 24, 120),
    "acdc_official": (100, 0, 50),
    "mmwhs_mr": (16, 0, 4),
    "mmwhs_ct_to_mr": (29, 4, 4),
    "mmwhs_mr_to_ct": (29, 4, 4),
    "mnms_to_a": (225, 0, 95),
    "mnms_to_b": (195, 0, 125),
    "mnms_to_c": (270, 0, 50),
    "mnms_to_d": (270, 0, 50),
}


@pytest.mark.parametrize(("family", "sizes"), SIZES.items())
def test_published_sizes(family: str, sizes: tuple[int, ...]) -> None:
    protocol, _ = find_protocol(family)
    assert (len(protocol.train), len(protocol.validation), len(protocol.test)) == sizes
    if family == "acdc":
        assert sorted(protocol.train + protocol.validation + protocol.test) == [
            f"patient{n:03d}" for n in range(1, 101)
        ]
        assert protocol.train[:3] == ("patient099", "patient038", "patient050")


def test_protocols_of_one_data_set_divide_the_same_patients() -> None:
    for start in ("pancreas_ct", "synapse", "mnms_to", "mmwhs_"):
        protocols = [read_protocol(path) for path in FILES if path.stem.startswith(start)]
        people = [sorted(part.train + part.validation + part.test) for part in protocols]
        if start == "mmwhs_":  # each leaves out three scans of its target, whose labels would choose checkpoints
            assert len({*people[0], *people[2]}) == 40
            assert people[1] == [f"mr_train_{n}" for n in range(1001, 1021)]
        else:
            assert all(names == people[0] for names in people)
    for family in ("pancreas_ct", "pancreas_ct_luseg"):  # withdrawn: they are scan 2 again
        protocol, _ = find_protocol(family)
        assert not {"PANCREAS_0025", "PANCREAS_0070"} & {*protocol.train, *protocol.test}


@pytest.mark.parametrize(
    ("name", "labelled", "hidden"),
    [
        ("acdc_official-1.25pct", 1, 99), ("acdc_official-2.5pct", 3, 97), ("acdc_official-10pct", 10, 90),
        ("mmwhs_mr-2", 2, 14), ("mmwhs_mr-4", 4, 12), ("mmwhs_mr-8", 8, 8),
        ("synapse-2", 2, 18), ("synapse-4", 4, 16), ("synapse_dhc-2", 2, 18),
        ("amos-4", 4, 212), ("amos-10", 10, 206), ("amos-11", 11, 205),
    ],
)  # fmt: skip
def test_budgets_leave_the_counts_of_the_papers(name: str, labelled: int, hidden: int) -> None:
    protocol, budget = find_protocol(name)
    people = [ProtocolCase(patient, patient) for patient in (*protocol.train, *protocol.validation, *protocol.test)]
    fold = fold_of(protocol, people, [])
    seen = fold_cases([fold], 0, LabelBudget.parse(budget), {})
    assert (len(seen.labelled), len(seen.unlabelled)) == (labelled, hidden)
    assert not {*seen.labelled, *seen.unlabelled} & {*protocol.test, *protocol.validation}


def test_orders_that_are_not_published_follow_the_rule_that_the_file_names() -> None:
    def first(names: list[str], count: int) -> list[str]:
        return [sorted(names)[i] for i in np.random.RandomState(0).permutation(len(names))][:count]

    acdc, _ = find_protocol("acdc_official")
    assert list(acdc.train) == first([f"patient{n:03d}" for n in range(1, 101)], 100)
    assert acdc.test == tuple(f"patient{n}" for n in range(101, 151))
    amos, _ = find_protocol("amos")
    assert sorted(amos.labelled["11"]) == sorted(first(list(amos.train), 11))
    synapse, _ = find_protocol("synapse")
    assert sorted(synapse.labelled["2"]) == sorted(first(list(synapse.labelled["4"]), 2))
    mmwhs, _ = find_protocol("mmwhs_mr")
    assert list(mmwhs.train) == first(list(mmwhs.train), 16)
    for protocol in (acdc, amos, synapse, mmwhs):
        assert "RandomState(0).permutation" in protocol.source


def test_a_budget_may_have_its_own_labelled_list(tmp_path: Path, monkeypatch) -> None:
    content = {"source": "s", "budgets": ["1", "2", "100%"], "labelled": {"1": ["c"], "2": ["b", "d"]},
               "train": ["a", "b", "c", "d"]}  # fmt: skip
    monkeypatch.setattr("nnssl.data.protocols.FOLDER", tmp_path)
    (tmp_path / "x.json").write_text(json.dumps(content))
    found = {name: find_protocol(name) for name in ("x-1", "x-2", "x-100pct", "x")}
    assert {name: "".join(protocol.train) for name, (protocol, _) in found.items()} == {
        "x-1": "cabd", "x-2": "bdac", "x-100pct": "abcd", "x": "abcd",
    }  # fmt: skip
    assert [protocol.family for protocol, _ in found.values()] == ["x-1", "x-2", "x", "x"]
    assert is_of_protocol([{"protocol": "x-1"}], "x-1")
    assert not is_of_protocol([{"protocol": "x-1"}], "x-2")
    (tmp_path / "x.json").write_text(json.dumps(content | {"labelled": {"1": ["e"]}}))
    with pytest.raises(DataError, match="is not 1 training patients"):
        find_protocol("x-1")


def test_names_and_contradictions() -> None:
    assert budget_of("acdc-7", None, 0) == budget_of("acdc-7", 7, 0) == "7"
    for arguments, word in (
        (("acdc-7", "3", 0), "-labelled 3"),
        (("acdc-7", None, 1), "one fold"),
        (("acdc", None, 0), "needs a label budget"),
        (("acdc-8", None, 0), "unknown protocol"),
    ):
        with pytest.raises(UsageError) as caught:
            budget_of(*arguments)
        assert word in str(caught.value)


def fold_of(protocol: Protocol, labelled: list[ProtocolCase], unlabelled: list[ProtocolCase]) -> dict:
    lists = protocol.lists({case.patient: case.domain for case in labelled})
    return protocol_fold(protocol, lists, labelled, unlabelled)


def cases(text: str) -> list[ProtocolCase]:
    return [ProtocolCase(f"{name}_{frame}", name[:2], name[0]) for name in text.split() for frame in (1, 2)]


def test_lists_become_a_fold_without_test_cases() -> None:
    protocol = Protocol("f", "s", ("1",), train=("b1", "a1"), validation=("a2",), test=("a3",))
    fold = fold_of(protocol, cases("a1 a2 a3 b1"), [*cases("a2 a3 b9"), ProtocolCase("b1_3", "b1", "b")])
    assert fold == {
        "train": ["a1_1", "a1_2", "b1_1", "b1_2"],
        "val": ["a2_1", "a2_2"],
        "unlabelled": ["b1_3"],
        "labelled_order": ["b1", "a1"],
        "test": ["a3_1", "a3_2"],
        "protocol": "f",
    }
    with pytest.raises(DataError, match="needs 1 patient"):
        fold_of(protocol, cases("a1 b1"), [])


def test_rule_is_seeded_and_complete() -> None:
    protocol = Protocol("f", "s", ("1",), rule={"seed": 3, "validation": 2, "test": 3})
    people = {f"p{n}": "" for n in range(10)}
    lists = protocol.lists(people)
    names = sorted(people)
    shuffled = [names[i] for i in np.random.RandomState(3).permutation(10)]
    assert (lists.train, lists.order) == (tuple(shuffled[:5]), tuple(shuffled[:5]))
    assert (lists.validation, lists.test) == (tuple(shuffled[5:7]), tuple(shuffled[7:]))
    assert protocol.lists(dict(reversed(people.items()))) == lists
    with pytest.raises(DataError, match="needs more patients"):
        protocol.lists({"p1": "", "p2": ""})


def test_unseen_domain_is_tested_and_never_learned_from() -> None:
    protocol = Protocol(
        "f", "s", ("1",), rule={"seed": 0, "validation": 1},
        domains={"labelled": ["a"], "unlabelled": ["a", "b"], "test": ["c"]},
    )  # fmt: skip
    fold = fold_of(protocol, cases("a1 a2 a3 b1 b2 c1 c2"), cases("a9 b9 c9"))
    assert {name[:2] for name in fold["test"]} == {"c1", "c2"}
    assert {name[0] for name in fold["train"]} == {"a", "b"}
    assert {name[0] for name in fold["val"]} == {"a"}
    assert {name[0] for name in fold["unlabelled"]} == {"a", "b"}
    assert len(fold["labelled_order"]) == 2
    assert all(patient[0] == "a" for patient in fold["labelled_order"])
    patients = {case.name: case.patient for case in cases("a1 a2 a3 b1 b2 a9 b9")}
    seen = fold_cases([fold], 0, LabelBudget.parse("2"), patients)
    assert {name[0] for name in seen.labelled} == {"a"}
    assert {"b1_1", "b2_2", "a9_1", "b9_1"} <= set(seen.unlabelled)
    with pytest.raises(DataError, match="domains"):
        fold_of(protocol, cases("a1 a2 b1"), [])


def test_adaptation_hides_the_target_and_tests_on_part_of_it() -> None:
    protocol = Protocol(
        "f", "s", ("2",), rule={"seed": 0, "test": 1}, domains={"labelled": ["a"], "unlabelled": ["b"], "test": ["b"]}
    )
    fold = fold_of(protocol, cases("a1 a2 b1 b2 b3"), [])
    assert {name[0] for name in fold["test"]} == {"b"}
    assert len(fold["test"]) == 2
    assert sorted(fold["labelled_order"]) == ["a1", "a2"]
    seen = fold_cases([fold], 0, LabelBudget.parse("2"), {case.name: case.patient for case in cases("a1 a2 b1 b2 b3")})
    assert {name[0] for name in seen.labelled} == {"a"}
    assert {name[0] for name in seen.unlabelled} == {"b"}


def test_without_validation_patients_the_labelled_cases_validate() -> None:
    protocol = Protocol("f", "s", ("1",), train=("b1", "a1"), test=("a3",))
    fold = fold_of(protocol, cases("a1 a3 b1"), [])
    patients = {case.name: case.patient for case in cases("a1 a3 b1")}
    check_splits([fold], patients, [], Path("splits_final.json"), patients)
    seen = fold_cases([fold], 0, LabelBudget.parse("1"), patients)
    assert seen.labelled == seen.validation == ("b1_1", "b1_2")
    assert seen.unlabelled == ("a1_1", "a1_2")


LISTS = {
    "train": ["patient004", "patient001", "patient003"],
    "validation": ["patient005"],
    "test": ["patient002"],
}


@pytest.fixture
def download(tmp_path: Path, monkeypatch) -> Path:
    """Make five training patients and one of the testing part in ACDC's layout, and a protocol for them."""
    content = {"source": "made for this test", "budgets": ["2"], **LISTS}
    monkeypatch.setattr("nnssl.data.protocols.FOLDER", tmp_path / "protocols")
    (tmp_path / "protocols").mkdir()
    (tmp_path / "protocols" / "small.json").write_text(json.dumps(content))
    root, voxels = tmp_path / "ACDC" / "database", np.zeros((2, 3, 3), dtype=np.uint8)
    mask = sitk.GetImageFromArray(voxels + np.eye(3, dtype=np.uint8))
    for number in range(1, 7):
        patient = f"patient{number:03d}"
        folder = root / ("training" if number <= 5 else "testing") / patient
        folder.mkdir(parents=True)
        (folder / "Info.cfg").write_text("ED: 1\nES: 2\n")
        frames = [sitk.GetImageFromArray(voxels + np.uint8(10 * number + k)) for k in (1, 2, 3)]
        sitk.WriteImage(sitk.JoinSeries(frames), str(folder / f"{patient}_4d.nii.gz"))
        for k in (1, 2):
            sitk.WriteImage(frames[k - 1], str(folder / f"{patient}_frame0{k}.nii.gz"))
            sitk.WriteImage(mask, str(folder / f"{patient}_frame0{k}_gt.nii.gz"))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    return root


def test_conversion_with_a_protocol(download: Path, tmp_path: Path) -> None:
    assert convert(["acdc", "-i", str(download), "-d", "27", "-protocol", "small", "--cine", "-np", "1"]) == 0
    raw = read_raw_dataset(27)
    protocol, _ = find_protocol("small")
    assert {case.patient for case in raw.labelled.values()} == {*protocol.train, *protocol.validation}
    assert {case.patient for case in raw.test.values()} == set(protocol.test)
    assert {case.patient for case in raw.unlabelled.values()} == {*protocol.train, *protocol.validation}
    assert len(list((raw.folder / "labelsTs").iterdir())) == 2
    (fold,) = json.loads((raw.folder / "splits_final.json").read_text())
    assert (len(fold["train"]), len(fold["val"]), len(fold["unlabelled"])) == (6, 2, 3)
    assert protocol_splits("small-2", raw) == [fold]
    seen = fold_cases([fold], 0, LabelBudget.parse("2"), raw.patients())
    assert {raw.patients()[case] for case in seen.labelled} == {"patient004", "patient001"}
    assert raw.dataset_json["protocol"] == "small"


def test_planning_and_training_take_the_protocol(download: Path, tmp_path: Path, monkeypatch) -> None:
    assert convert(["acdc", "-i", str(download), "-d", "27", "-np", "1"]) == 0
    raw, preprocessed = read_raw_dataset(27), tmp_path / "preprocessed" / "Dataset027_ACDC"
    preprocessed.mkdir(parents=True)
    splits, warnings = settle_splits(raw, preprocessed, protocol_splits("small-2", raw))
    assert warnings == []
    scope = make_scope(raw, preprocessed, splits, 0, LabelBudget.parse("2"))
    protocol, _ = find_protocol("small")
    used = {raw.patients()[case] for case in (*scope.with_labels, *scope.unlabelled)}
    assert used == {*protocol.train, *protocol.validation}
    opened = {raw.patients()[case] for case in scope.with_labels}
    assert opened == {*protocol.train[:2], *protocol.validation}
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    write_splits(preprocessed, [{"train": ["a"], "val": ["b"]}])
    with pytest.raises(DataError) as caught:
        training.train(27, "2d", 0, protocol="small-2", device="cpu")
    assert "nnssl_plan_and_preprocess -d Dataset027_ACDC -c 2d -protocol small-2" in str(caught.value)
    with pytest.raises(DataError, match="not those of the preprocessed folder"):
        settle_splits(raw, preprocessed, protocol_splits("small-2", raw))
