from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.cli.phantom import main

SMALL = ["-labelled", "1", "-unlabelled", "2", "-test", "0", "-shape", "16", "18", "20"]


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    return tmp_path


def test_writes_and_names_the_next_command(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-d", "901", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert str(raw / "Dataset901_Phantom") in printed
    assert "1 labelled, 2 unlabelled, 0 test scans" in printed
    assert "nnssl_plan_and_preprocess -d 901" in printed
    assert len(list((raw / "Dataset901_Phantom" / "imagesUn").iterdir())) == 2


def test_json(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-d", "7", "-n", "Toy", "--json", *SMALL]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(raw / "Dataset007_Toy"), "dataset": "Dataset007_Toy"}


def test_seed_reaches_the_voxels(raw: Path) -> None:
    image = raw / "Dataset901_Phantom" / "imagesTr" / "labelled_001_0000.nii.gz"
    contents = []
    for seed in ("0", "1", "0"):
        assert main(["-d", "901", "-seed", seed, "--overwrite", *SMALL]) == 0
        contents.append(image.read_bytes())
    assert contents[0] == contents[2] != contents[1]


def test_existing_dataset_is_a_usage_error(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-d", "901", *SMALL]) == 0
    assert main(["-d", "901", *SMALL]) == 2
    assert "add --overwrite" in capsys.readouterr().err


def test_without_nnunet_raw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert main(["-d", "901", "--json", *SMALL]) == 4
    assert "nnUNet_raw" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize("arguments", [[], ["-d", "one"], ["-d", "901", "-shape", "16", "16"], ["-d", "901", "--over"]])
def test_wrong_arguments(raw: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert list(raw.iterdir()) == []


def test_domains_are_counted_and_lead_to_a_setting(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["-labelled", "1", "-unlabelled", "0", "-test", "0", "-shape", "16", "16", "16"]
    assert main(["-d", "901", *small, "-domains", "4"]) == 0
    printed = capsys.readouterr().out
    assert "1 labelled, 0 unlabelled, 0 test scans of each domain" in printed
    assert "-setting umda:A:B" in printed
    assert len(list((raw / "Dataset901_Phantom" / "imagesTr").iterdir())) == 4
    assert main(["-d", "902", *small, "-domains", "9"]) == 2
