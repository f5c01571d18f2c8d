"""The example method of CONTRIBUTING.md trains and keeps the contract of every method."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nnssl_trainers.methods
from nnssl.registry import METHODS, Method
from tests.nnssl_trainers import test_contract as contract

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block_after(heading: str) -> str:
    """Return the Python block of CONTRIBUTING.md that follows a line which starts with the heading."""
    found = re.search(rf"^`{re.escape(heading)}`.*?:\n\n```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Register the example while a test runs; return the name of the trainer."""
    method = eval(block_after("nnssl/registry.py"), {"Method": Method})
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / f"{method.name}.py").write_text(block_after(f"nnssl_trainers/methods/{method.name}.py"), encoding="utf-8")
    monkeypatch.setattr(nnssl_trainers.methods, "__path__", [*nnssl_trainers.methods.__path__, str(folder)])
    monkeypatch.setitem(METHODS, method.class_name, method)
    yield method.class_name
    del sys.modules[method.module]


def test_the_example_keeps_the_contract_of_the_class_and_its_settings(name: str) -> None:
    contract.test_class_keeps_nnunets_contract(name)
    contract.test_config_round_trip_and_symbols(name)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_example_trains(name: str, dim: int, make_trainer) -> None:
    contract.test_every_loss_term_reaches_the_student_and_nothing_else(name, dim, make_trainer)
    contract.test_final_checkpoint_is_the_deployed_network(name, dim, make_trainer)


def test_the_example_learns_and_continues(name: str, make_trainer, tmp_path: Path) -> None:
    contract.test_training_learns_the_labelled_batch(name, 2, make_trainer)
    contract.test_stopped_and_continued_ends_with_the_same_weights(name, make_trainer, tmp_path)
