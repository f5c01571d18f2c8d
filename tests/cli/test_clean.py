from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nnssl.cli.clean import main
from tests.cleaning.test_api import NAME, data, tree, write_cases  # noqa: F401 - the data set is a fixture


def test_the_list_ends_with_the_command_that_removes(data, capsys) -> None:  # noqa: F811
    write_cases(data.preprocessed / "P_old", "a")
    before = tree(data.root)
    assert main(["-d", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == NAME
    assert lines[-1] == "run:  nnssl_clean -d 5 --yes"
    assert tree(data.root) == before
    assert main(lines[-1].split()[2:]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "removed, which frees 302 B of 302 B"
    assert not (data.preprocessed / "P_old").exists()
    assert main([]) == 0
    assert capsys.readouterr().out == "nothing is left over\n"


def test_all_data_sets_without_a_name(data, capsys) -> None:  # noqa: F811
    shutil.copytree(data.preprocessed, data.preprocessed.with_name("Dataset006_New"))
    for name in (NAME, "Dataset006_New"):
        write_cases(Path(data.preprocessed.with_name(name), "P_old"), "a")
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("Dataset")] == [NAME, "Dataset006_New"]
    assert lines[-1] == "run:  nnssl_clean --yes"


def test_a_folder_in_use_is_named(data, capsys) -> None:  # noqa: F811
    from nnssl.system.locks import hold_lock

    write_cases(data.preprocessed / "P_old", "a")
    with hold_lock(data.preprocessed / ".P_old.lock", "", where=data.root, run=""):
        assert main(["--yes"]) == 0
    assert f"a running command uses {data.preprocessed / 'P_old'}" in capsys.readouterr().out
    assert (data.preprocessed / "P_old" / "a.pkl").exists()


@pytest.mark.parametrize("words", [["-y"], ["-d"], ["--ye"]])
def test_an_abbreviated_option_removes_nothing(data, words: list[str]) -> None:  # noqa: F811
    write_cases(data.preprocessed / "P_old", "a")
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert (data.preprocessed / "P_old" / "a.pkl").exists()
