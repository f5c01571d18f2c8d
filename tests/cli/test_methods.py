from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nnssl.cli.methods import main
from nnssl.cli.train import make_parser
from nnssl.registry import METHODS
from nnssl.sweep.estimate import Measured


def test_every_method_is_listed_with_its_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    for method in METHODS.values():
        assert f"{method.class_name:<20} {method.paper}\n" in printed
    lines = [line.strip() for line in printed.splitlines()]
    [place] = [number for number, line in enumerate(lines) if line == "the default of nnssl_train"]
    assert lines[place - 1].startswith(make_parser().get_default("tr"))


def test_settings_are_listed_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for method in METHODS.values():
        start = next(number for number, line in enumerate(lines) if line.startswith(method.class_name))
        for item in dataclasses.fields(method.load().config_class):
            assert any(line.lstrip().startswith(f"--set {item.name}=") for line in lines[start:])


def test_methods_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [entry["class"] for entry in printed] == list(METHODS)
    keys = {"name", "class", "paper", "needs", "use", "cost", "gain", "weaknesses"}
    assert all(entry.keys() == keys for entry in printed)


def test_the_folder_for_nnunet_exists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--env"]) == 0
    folder = Path(capsys.readouterr().out.strip().removeprefix("export nnUNet_extTrainer="))
    assert (folder / "nnssl_semi_trainers.py").is_file()


def test_the_list_imports_nothing_heavy() -> None:
    code = "import sys; from nnssl.cli.methods import main; main([]); "
    code += "print([m for m in ('torch', 'numpy', 'nnunetv2') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[]"


def test_the_export_as_json(capsys) -> None:
    assert main(["--env", "--json"]) == 0
    folder = json.loads(capsys.readouterr().out)["nnUNet_extTrainer"]
    assert (Path(folder) / "nnssl_semi_trainers.py").is_file()


def test_a_paper_is_printed_as_bibtex(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cite", "MeanTeacherTrainer"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("@inproceedings{tarvainen2017mean,\n  title = {Mean teachers are better role models")
    assert printed.endswith("doi = {10.1038/s41592-020-01008-z},\n}\n")
    assert main(["--cite", "MeanTeacherTrainer", "--json"]) == 0
    assert "\n\n".join(json.loads(capsys.readouterr().out).values()) + "\n" == printed
    assert main(["--cite", "MeanTeacher"]) == 2
    assert "--cite MeanTeacherTrainer" in capsys.readouterr().err


def test_every_method_has_its_use_cost_gain_and_weaknesses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for word in ("use", "cost", "gain", "weaknesses"):
        assert len([line for line in printed if line.startswith(f"{word}: ")]) >= len(METHODS)
    assert "gain: +7.9 and +8.7 points (2 seeds)" in printed
    assert "cost: 2d: 1 x time, 1 x memory; 3d_fullres: 1 x time, 1 x memory" in printed


def test_the_pace_here_follows_the_runs_of_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    (tmp_path / "preprocessed" / "Dataset901_Phantom").mkdir(parents=True)
    assert main(["-d", "901"]) == 2
    assert "-tr SupervisedTrainer -num_iterations 100" in capsys.readouterr().err
    monkeypatch.setattr("nnssl.sweep.estimate.Measured.of", lambda results: FOUND[results.name])
    assert main(["-d", "901", "--json"]) == 0
    entries = {entry["class"]: entry["seconds_per_iteration"] for entry in json.loads(capsys.readouterr().out)}
    assert entries["SupervisedTrainer"] == {"2d": {"seconds": 0.5, "source": "measured in 3 run(s)"}}
    assert entries["FixMatchTrainer"]["2d"]["source"] == "from runs of SupervisedTrainer and the relative cost"
    assert main(["-d", "901"]) == 0
    assert "2d here: 0.5 s an iteration, measured in 3 run(s)" in capsys.readouterr().out


FOUND = {"Dataset901_Phantom": Measured(seconds={("SupervisedTrainer", "2d"): [0.4, 0.5, 0.9]})}
