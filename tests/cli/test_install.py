from __future__ import annotations

import nnssl
from nnssl.cli.install import main
from tests.inference.model_for_tests import write_model


def test_the_command_installs_says_where_and_refuses_with_code_3(tmp_path, monkeypatch, capsys) -> None:
    model, bundle, target = write_model(tmp_path / "origin"), tmp_path / "model.zip", tmp_path / "results"
    nnssl.export_model(model, bundle)
    monkeypatch.setenv("nnUNet_results", str(target))
    assert main([str(bundle)]) == 0
    printed = capsys.readouterr().out
    installed = target / model.parent.name / model.name
    assert printed.splitlines() == [f"installed: {installed}", f"next: nnssl_predict -m {installed} -i IMAGES -o MASKS"]
    assert main([str(bundle)]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main([str(bundle), "--overwrite"]) == 0
    bundle.write_bytes(bundle.read_bytes()[:2000])
    capsys.readouterr()
    assert main([str(bundle), "--overwrite"]) == 3
    assert "error: the bundle is refused; nothing was installed" in capsys.readouterr().err
    assert (installed / "plans.json").is_file()
