from __future__ import annotations

import hashlib

from nnssl.cli.export import main
from tests.inference.model_for_tests import write_model


def test_the_command_names_file_hash_and_what_is_not_in_it(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    model = write_model(tmp_path, folds=(0, 2))
    assert main([model.name, "-o", str(tmp_path / "model.zip"), "-f", "2"]) == 0
    printed = capsys.readouterr().out
    assert "folds 2 of SupervisedTrainer__nnUNetPlans__3d_fullres" in printed
    assert hashlib.sha256((tmp_path / "model.zip").read_bytes()).hexdigest() in printed
    assert "not in the bundle: from dataset.json all but" in printed
    assert printed.rstrip().endswith("nnssl_install model.zip")


def test_a_fold_without_a_checkpoint_is_a_usage_error(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    model = write_model(tmp_path)
    assert main([str(model), "-o", str(tmp_path / "model.zip"), "-f", "1"]) == 2
    assert "fold 1" in capsys.readouterr().err
    assert not (tmp_path / "model.zip").exists()
