from __future__ import annotations

from pathlib import Path

import pytest

import nnssl
from nnssl.cli.convert import main
from nnssl.dataset_conversion.api import ConversionResult, convert
from nnssl.dataset_conversion.engine.table import CONVERTERS
from nnssl.errors import UsageError
from tests.dataset_conversion.miniatures import convert_folder, names, scan, write


def test_convert_is_the_public_function() -> None:
    assert nnssl.convert is convert


def test_the_result_counts_what_was_written_and_kept(world: tuple[Path, Path]) -> None:
    source, folder = world
    result = convert("folder", source, 5, num_processes=1)
    (warning,) = result.warnings
    assert warning.startswith("no unlabelled scans")
    assert result == ConversionResult(
        folder, CONVERTERS["folder"], False, 3, 0, 0, converted=3, kept=0, warnings=(warning,)
    )
    write(source / "unlabelled" / "d.nrrd", scan(9))
    result = convert("folder", str(source), 5, num_processes=1)
    assert (result.labelled, result.unlabelled, result.converted, result.kept) == (3, 1, 1, 3)
    assert result.lines()[1:] == [
        "  3 labelled, 1 unlabelled, 0 test cases: 1 converted, 3 there already",
        f"licence:  {CONVERTERS['folder'].licence}",
        f"citation: {CONVERTERS['folder'].citation}",
        "next: nnssl_plan_and_preprocess -d 5",
    ]


def test_an_unknown_converter(world: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="unknown converter 'acd'") as caught:
        convert("acd", world[0], 5)
    assert caught.value.run == "nnssl_convert acdc"


def test_options_have_the_defaults_of_the_converter(world: tuple[Path, Path]) -> None:
    source, folder = world
    convert("folder", source, 5, options={"channel": ["CT"]}, name="Mine", num_processes=1)
    assert names(folder.with_name("Dataset005_Mine") / "imagesTr") == [f"{case}_0000.nii.gz" for case in "abc"]


def test_dry_run_writes_nothing(world: tuple[Path, Path], capsys) -> None:
    source, folder = world
    assert convert_folder(source, "--dry_run") == 0
    assert not folder.exists()
    assert "3 labelled, 0 unlabelled, 0 test cases: 3 to convert, 0 there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (["-d", "0"], 2, "1 to 999"),
        (["-d", "5", "-o", "../x"], 2, "-o"),
        (["-d", "5", "-np", "0"], 2, "-np 0"),
        (["-d", "5", "-protocol", "acdc7"], 2, "-protocol acdc-7"),
        (["-d", "5", "-i", "/no/such/folder"], 2, "/no/such/folder"),
    ],
)
def test_wrong_options(world: tuple[Path, Path], capsys, options: list[str], code: int, expected: str) -> None:
    source, folder = world
    assert main(["folder", "-i", str(source), *options]) == code
    assert expected in capsys.readouterr().err
    assert not folder.exists()


def test_a_folder_of_the_user_is_left_alone(world: tuple[Path, Path], capsys) -> None:
    source, folder = world
    (folder / "imagesTr").mkdir(parents=True)
    assert convert_folder(source) == 2
    assert "was not made by nnssl_convert" in capsys.readouterr().err
    assert convert_folder(source, "-o", "Other") == 2
    assert "the id 5 is taken" in capsys.readouterr().err
