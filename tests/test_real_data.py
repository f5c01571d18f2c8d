"""The whole road on real scans, shortened: runs where NNSSL_REAL_DATA names a folder of data sets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import nnssl
from benchmarks.real_data import main as write_real_data

ROOT = Path(os.environ.get("NNSSL_REAL_DATA", "/nowhere"))
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.slow,
    pytest.mark.skipif(not ROOT.is_dir(), reason="NNSSL_REAL_DATA names no folder of data sets"),
]
SETTINGS = {
    "hippocampus": (4, "3d_fullres", "5", [40, 56, 40], 5, 155, 40, {}),
    "acdc": (27, "2d", "3", [192, 160], 6, 134, 20, {"patient076": "patient074"}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_plan_train_predict_evaluate(name: str, tmp_path: Path, monkeypatch) -> None:
    dataset, configuration, labelled, patch, few, many, held_out, same = SETTINGS[name]
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    write_real_data(ROOT / name, dataset, name, same)
    plan = nnssl.plan(dataset, (configuration,), budget="cpu", labelled=labelled)
    assert plan.configurations[configuration].patch_size == tuple(patch)
    assert [len(part) for part in (plan.cases.labelled, plan.cases.unlabelled, plan.cases.validation)] == [
        few, many, held_out,
    ]  # fmt: skip
    run = nnssl.train(
        dataset, configuration, 0, labelled=labelled, num_iterations=4, device="cpu", run_validation=False
    )
    images = tmp_path / "images"
    images.mkdir()
    outside = next((tmp_path / "nnUNet_raw").glob("held_out_*"))
    for file in sorted((outside / "imagesTr").iterdir())[:2]:
        (images / file.name).symlink_to(file.resolve())
    nnssl.predict(images, tmp_path / "masks", model=run.folder.parent, device="cpu", mirroring=False)
    result = nnssl.evaluate(outside / "labelsTr", tmp_path / "masks", chill=True)
    assert len(result.summary["metric_per_case"]) == 2
    rows = [json.loads(line) for line in (run.folder / "progress.jsonl").read_text().splitlines()]
    assert rows[-1]["iteration"] == 4
    assert set(rows[-1]) >= {"loss_supervised", "loss_consistency", "pseudo_dice", "data_wait_share"}
