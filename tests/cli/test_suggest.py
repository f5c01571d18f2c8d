from __future__ import annotations

from nnssl.cli.suggest import main
from tests.tiny_raw import NAME, write_raw


def test_the_command_lists_the_scans_and_says_what_comes_next(tmp_path, monkeypatch, capsys) -> None:
    for variable in ("nnUNet_raw", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    write_raw(tmp_path / "nnUNet_raw", labelled=1, unlabelled=3)
    words = ["-d", NAME, "-o", str(tmp_path / "next"), "-n", "2"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({line for line in lines if line.startswith("un_0")}) == 2
    assert lines[2].startswith("note: no model of the data set is trained")
    assert lines[-1] == f"next: correct the masks in place, then nnssl_accept {tmp_path / 'next'}"
    assert main(words) == 2
    assert "not replaced" in capsys.readouterr().err
    assert main([*words[:3], str(tmp_path / "other"), "-strategy", "entropi"]) == 2
    assert "run:   -strategy entropy" in capsys.readouterr().err
