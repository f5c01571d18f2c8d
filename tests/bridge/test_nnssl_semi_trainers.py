"""nnU-Net's search for trainers reads the bridge; a method that cannot be imported leaves the others in place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

import nnssl.registry
import nnssl_trainers.methods
from nnssl.registry import METHODS, Method

BRIDGE = Path(nnssl.registry.__file__).parent / "bridge"
BROKEN = {
    "MissingDependencyTrainer": ("import not_installed", "No module named 'not_installed'"),
    "RenamedFunctionTrainer": ("import math\nmath.no_such_function()", "no attribute 'no_such_function'"),
    "RenamedClassTrainer": ("class AnotherTrainer: pass", "no attribute 'RenamedClassTrainer'"),
}


def find(name: str) -> object:
    """Search as nnU-Net searches the folders of `nnUNet_extTrainer`."""
    folder = str(BRIDGE)
    return recursive_find_python_class(folder, name, None, base_folder=folder, cleanup_imports_from_base_folder=True)


@pytest.fixture
def broken_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Register methods whose modules fail on import, before those that work."""
    monkeypatch.setattr(nnssl_trainers.methods, "__path__", [*nnssl_trainers.methods.__path__, str(tmp_path)])
    for name, (source, _) in BROKEN.items():
        (tmp_path / f"of_{name}.py").write_text(source)
        monkeypatch.setitem(METHODS, name, Method(f"of_{name}", name, paper="", needs=(), activations=1.0))


@pytest.mark.usefixtures("broken_methods")
def test_a_method_that_cannot_be_imported_leaves_the_others() -> None:
    for name, (_, reason) in BROKEN.items():
        with pytest.raises(ImportError, match=f"{name} cannot be imported from {METHODS[name].module}: .*{reason}"):
            find(name)
    for name in METHODS.keys() - BROKEN.keys():
        assert find(name) is METHODS[name].load()


def test_an_unknown_trainer_is_not_found() -> None:
    assert find("NoSuchTrainer") is None


def test_the_bridge_lists_the_trainers_and_imports_none() -> None:
    code = "import nnssl_semi_trainers, sys; print(dir(nnssl_semi_trainers)); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=BRIDGE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(repr(name) in done.stdout for name in METHODS)
