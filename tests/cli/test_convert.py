from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.cli.convert import main, make_parser
from nnssl.dataset_conversion.engine.table import CONVERTERS


def test_help_lists_every_converter_and_imports_nothing_heavy() -> None:
    code = "import sys; from nnssl.cli.convert import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'numpy', 'SimpleITK', 'nnunetv2') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[]"
    for name in ("acdc", "la", "msd", "h5", "folder", *CONVERTERS):
        assert re.search(rf"^ +{name}\b", printed, re.MULTILINE), name


def test_every_option_of_a_converter_is_on_its_command_line() -> None:
    for name, converter in CONVERTERS.items():
        given = make_parser().parse_args([name, "-i", "x", "-d", "5"])
        for option in converter.options:
            default = False if option.kind is bool else option.default
            assert getattr(given, option.name) == default
        assert given.same_scans_are_one_patient == converter.same_scans_are_one_patient


@pytest.mark.parametrize("place", [["--json", "folder"], ["folder", "--json"]])
def test_the_result_as_json(place: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for folder, array in (("images", np.arange(8)), ("labels", np.arange(8) % 2)):
        (tmp_path / folder).mkdir()
        sitk.WriteImage(
            sitk.GetImageFromArray(array.reshape(2, 2, 2).astype(np.uint8)), str(tmp_path / folder / "a.nii.gz")
        )
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    assert main([*place, "-i", str(tmp_path), "-d", "5", "-np", "1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["converter"] == "folder"
    assert printed["dataset"] == "Dataset005_Folder"
    assert (printed["labelled"], printed["converted"], printed["kept"]) == (1, 1, 0)
    assert printed["citation"] == CONVERTERS["folder"].citation
