from __future__ import annotations

import shutil

from nnssl.cli.accept import main
from tests.tiny_raw import NAME, write_raw


def test_the_command_says_what_became_of_each_mask(tmp_path, monkeypatch, capsys) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    raw, masks = write_raw(tmp_path / "nnUNet_raw", labelled=2, unlabelled=2), tmp_path / "masks"
    masks.mkdir()
    shutil.copy(raw / "labelsTr" / "case_00.nii.gz", masks / "un_01.nii.gz")
    assert main([str(masks), "-d", NAME]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["un_01: labelled now", f"{NAME}: 3 labelled and 1 unlabelled scans"]
    assert lines[2].startswith(f"next: nnssl_plan_and_preprocess -d {NAME}")
    assert main([str(masks), "-d", NAME]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "un_01: labelled like this before"
    shutil.copy(raw / "imagesTr" / "case_00_0000.nii.gz", masks / "un_00.nii.gz")
    assert main([str(masks), "-d", NAME]) == 3
    assert "error: " in capsys.readouterr().err
