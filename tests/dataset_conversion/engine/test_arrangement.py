from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.dataset_conversion.engine.arrangement import apply_protocol
from nnssl.dataset_conversion.engine.records import Found, Part, SourceRecord
from nnssl.dataset_conversion.engine.sources import ImageFile

PARTS: dict[str, Part] = {"a": "labelled", "b": "labelled", "c": "labelled", "d": "test", "u": "unlabelled"}


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Found:
    """Make one case of each patient a, b, c, d and u, and the protocols `lists` and `rule`."""
    monkeypatch.setattr("nnssl.data.protocols.FOLDER", tmp_path)
    lists = {"source": "s", "budgets": ["1"], "train": ["d"], "validation": ["a"], "test": ["b", "x"]}
    rule = {"source": "s", "budgets": ["1"], "rule": {"seed": 0, "test": 1}}
    for name, content in (("lists", lists), ("rule", rule)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    records = tuple(
        SourceRecord(
            case, (ImageFile(Path(f"{case}.nii")),), part, None if case == "u" else ImageFile(Path(f"{case}l"))
        )
        for case, part in PARTS.items()
    )
    return Found(records, ("CT",), {"background": 0})


def test_lists_divide_all_labelled_cases_anew(found: Found) -> None:
    divided, (fold,) = apply_protocol(found, "lists")
    assert {record.case: record.part for record in divided.records} == {"a": "labelled", "b": "test", "d": "labelled"}
    assert (fold["train"], fold["val"], fold["labelled_order"]) == (["d"], ["a"], ["d"])
    assert {path.name for path in divided.ignored} == {"c.nii", "cl", "u.nii"}
    assert divided.notes == (
        "2 case(s) are not part of the protocol lists",
        "1 test patient(s) of the protocol are not in the download: x",
    )


def test_a_rule_leaves_the_test_cases_of_the_data_set_out(found: Found) -> None:
    divided, (fold,) = apply_protocol(found, "rule")
    parts = {record.case: record.part for record in divided.records}
    assert sorted(parts) == ["a", "b", "c", "u"]
    assert sorted(parts.values()) == ["labelled", "labelled", "test", "unlabelled"]
    assert fold["unlabelled"] == ["u"]
    assert len(fold["train"]) == 2
