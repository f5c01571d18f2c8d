from __future__ import annotations

import json

from nnssl.labelling.report import Origin, write_report
from nnssl.labelling.scores import ScanScore, Verdict


def test_a_report_has_one_entry_for_each_scan(tmp_path) -> None:
    scores = {"b": ScanScore((0.5, None), (1.5, 0.0)), "a": ScanScore((0.25, 0.75), (1.0, 2.0))}
    verdicts = {"a": Verdict(True), "b": Verdict(False, "no voxel of vessel")}
    origins = {"a": Origin("file", "a.nii.gz", "12"), "b": Origin("model", "checkpoint_supervised.pth", "34")}
    write_report(tmp_path / "cases.json", ["heart", "vessel"], scores, verdicts, origins)
    found = json.loads((tmp_path / "cases.json").read_text())
    assert list(found) == ["a", "b"]
    assert found["b"] == {
        "origin": "model",
        "source": "checkpoint_supervised.pth",
        "sha256": "34",
        "score": 0.5,
        "confidence": {"heart": 0.5, "vessel": None},
        "volumes_ml": {"heart": 1.5, "vessel": 0.0},
        "kept": False,
        "why": "no voxel of vessel",
    }
    assert found["a"]["score"] == 0.5
