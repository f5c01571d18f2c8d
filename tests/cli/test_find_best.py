from __future__ import annotations

import json

import pytest

from nnssl.cli.find_best import main
from tests.conftest import DATASET
from tests.inference import conftest as fixtures
from tests.selection.world_for_tests import reference, without_left, without_right, write_references, write_validated

results = fixtures.results


@pytest.fixture(autouse=True)
def models(results, tmp_path, monkeypatch):
    write_references(tmp_path / "nnUNet_preprocessed")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "nnUNet_preprocessed"))
    one = write_validated(results, "SupervisedTrainer", without_right(reference()))
    two = write_validated(results, "FixMatchTrainer", without_left(reference()), npz=False)
    return one, two


def test_the_best_comes_first_and_the_next_command_is_named(models, results, capsys) -> None:
    assert main(["-d", DATASET]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Dice on 2 held-out cases, folds 0, the best first"
    rows = [line.split()[:2] for line in lines[1:3]]
    assert {row[1] for row in rows} == {model.name for model in models}
    assert float(rows[0][0]) >= float(rows[1][0])
    assert lines[3].startswith(f"note: {models[1].name} has no saved probabilities")
    assert lines[4:] == [
        f"written: {results / DATASET / 'best.json'}",
        f"next: nnssl_predict -i IMAGES -o MASKS -d {DATASET}",
    ]


def test_json_and_a_data_set_without_runs(models, results, capsys) -> None:
    assert main(["-d", DATASET, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("file") == str(results / DATASET / "best.json")
    assert printed == json.loads((results / DATASET / "best.json").read_text())
    assert main(["-d", "999"]) == 2
    assert "no finished and validated run" in capsys.readouterr().err
