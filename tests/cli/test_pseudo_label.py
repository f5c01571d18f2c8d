from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from nnssl.cli.pseudo_label import main
from nnssl.errors import DataError
from nnssl.labelling import api
from nnssl.labelling.api import PseudoLabelResult
from tests.tiny_raw import NAME, write_raw


@pytest.fixture
def calls(monkeypatch):
    """Return the arguments of every call of `nnssl.pseudo_label`, whose work is left out."""
    seen: list[tuple[tuple, dict]] = []

    def note(*arguments, **options):
        sys.stdout.write("chatter of nnU-Net")
        seen.append((arguments, options))
        return PseudoLabelResult(Path("out"), Path("out/scores.json"), ["a", "b"], ["b"], 1, ["m"], "cpu")

    monkeypatch.setattr(api, "pseudo_label", note)
    return seen


def test_options_reach_the_function(calls, capsys) -> None:
    words = "-d 27 -o out -m A B -keep_share 0.8 --disable_tta --c --no_postprocessing -device cpu"
    assert main(words.split()) == 0
    options = {"models": ["A", "B"], "keep_share": 0.8, "mirroring": False, "device": "cpu", "postprocessing": False}
    assert calls == [(("27", "out"), {**options, "overwrite": False, "continue_prediction": True})]
    printed = capsys.readouterr().out
    assert "2 masks, 1 of them new: out" in printed
    assert "the filter keeps 1; scores and reasons: out/scores.json" in printed
    assert "nnssl_train 27 CONFIGURATION FOLD -tr SelfTrainingTrainer -pseudo_labels out" in printed
    assert "chatter" not in printed


def test_defaults(calls) -> None:
    assert main(["-d", "27", "-o", "out"]) == 0
    defaults = {"models": [], "keep_share": 0.9, "mirroring": True, "device": None, "postprocessing": True}
    assert calls[0][1] == {**defaults, "overwrite": False, "continue_prediction": False}
    assert main(["-d", "27", "-o", "out", "--overwrite"]) == 0
    assert calls[1][1]["overwrite"] is True


def test_json_is_alone_on_standard_output(calls, capsys) -> None:
    assert main(["-d", "27", "-o", "out", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"] == "out/scores.json"
    assert found["kept"] == ["b"]


def test_a_filled_folder_is_refused_and_stays(tmp_path, monkeypatch, capsys) -> None:
    write_raw(tmp_path)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / ".DS_Store").touch()
    words = ["-d", NAME, "-o", str(masks)]
    ways = [words, [*words, "--c"], [*words, "--overwrite"]]
    for way in ways:
        main(way)
        assert "holds files already" not in capsys.readouterr().err  # hidden files do not count
    (masks / "un_00.nii.gz").write_text("a mask of a colleague")
    codes = []
    for way in ways:
        codes.append(main(way))
        refused = "holds files already" in (err := capsys.readouterr().err)
        assert refused == (way is words), err
    assert codes[0] == 2
    assert main([*words, "--c", "--overwrite"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert (masks / "un_00.nii.gz").read_text() == "a mask of a colleague"


def test_errors_have_their_exit_code(monkeypatch, capsys) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("no scan is unlabelled", where="raw")

    monkeypatch.setattr(api, "pseudo_label", fail)
    assert main(["-d", "27", "-o", "out"]) == 3
    assert "error: no scan is unlabelled" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["-o", "out"])
    assert stopped.value.code == 2
