from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import pytest

from nnssl.config import MethodConfig
from nnssl.config_source import settings_without_torch
from nnssl.registry import DEFAULT_METHOD, METHODS, Method

BLOCKED = "import sys; sys.modules['torch'] = None; from nnssl.cli.train import main; sys.exit(main(sys.argv[1:]))"


def described(config_class: type[MethodConfig]) -> list[tuple[str, Any, dict[str, Any]]]:
    return [(item.name, item.default, dict(item.metadata)) for item in fields(config_class)]


@pytest.mark.parametrize("trainer", METHODS)
def test_the_settings_are_those_of_the_trainer(trainer: str) -> None:
    draft, real = settings_without_torch(METHODS[trainer]), METHODS[trainer].load().config_class
    assert draft is not None
    assert described(draft) == described(real)
    assert (draft.__name__, draft.presets) == (real.__name__, real.presets)


@dataclass(frozen=True)
class OwnMethod(Method):
    """A method whose file lies in a folder of the test."""

    package: ClassVar[str] = "own_methods"


def settings_of(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> type[MethodConfig] | None:
    package = folder / "own_methods"
    package.mkdir()
    name = f"method_{folder.name}"
    (package / f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(folder))
    for module in [module for module in sys.modules if module.startswith("own_methods")]:
        monkeypatch.delitem(sys.modules, module)
    return settings_without_torch(OwnMethod(name, "OwnTrainer", "", (), 1.0))


OWN = """
    from dataclasses import dataclass
    import {library}
    from {module} import {name}
    from nnssl.config import MethodConfig, hyper

    @dataclass(frozen=True)
    class OwnConfig(MethodConfig):
        strength: float = hyper({default}, "strength", low=0.0)

    class OwnTrainer:
        config_class = OwnConfig
"""


def test_only_what_the_settings_use_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = OWN.format(library="no_such_library", module="math", name="tau", default="tau / 2")
    found = settings_of(tmp_path, monkeypatch, source)
    assert found is not None
    assert found().strength == pytest.approx(3.14159265)


@pytest.mark.parametrize(
    ("library", "module", "name", "default"),
    [
        ("math", "torch", "pi", "pi"),
        ("torch", "math", "tau", "torch.pi"),
        ("math", "math", "tau", "unknown"),
    ],
)
def test_settings_that_need_more_are_left_to_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, module: str, name: str, default: str
) -> None:
    assert settings_of(tmp_path, monkeypatch, OWN.format(**locals())) is None


def test_a_method_without_a_file_or_without_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(tmp_path, monkeypatch, "class OwnTrainer: pass") is None
    assert settings_without_torch(OwnMethod("absent", "OwnTrainer", "", (), 1.0)) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("0 --set ema_dcay=0.5", "unknown setting 'ema_dcay' of FixMatchConfig"),
        ("0 --set ema_decay=5", "ema_decay=5.0 is not allowed"),
        ("0 --set ema_decay", "is not of the form name=value"),
        ("0 -tr CCETrainer --set preset=papr", "preset=papr is not allowed"),
        ("0 --set network=vnt", "known: plan, residual, bcp, unet_bcp, vnet"),
        ("0 -network none", "network=none is no network"),
        ("0 -tr DSMTTrainer --set student2=mamba_net:width=8", "student2=mamba_net:width=8 is no network"),
        ("0 -pseudo_labels masks", "train with -tr SelfTrainingTrainer"),
        ("0 -tr SelfTrainingTrainer -pseudo_labels nowhere", "there is no such folder of masks"),
        ("7", "fold 7 does not exist"),
        ("0 -labelled 99", "99 patients"),
        ("0 -p OtherPlans", "OtherPlans"),
        ("0 -tag a/b", "a/b"),
    ],
)
def test_nnssl_train_refuses_wrong_arguments_without_importing_torch(make_tiny, words: str, message: str) -> None:
    folder = make_tiny()
    command = [sys.executable, "-c", BLOCKED, folder.name, "3d_fullres", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (2, 3)
    assert message in done.stderr


PREPROCESSED = "import nnssl.planning.preprocessing as p; p.check_preprocessed = lambda *_: None; "


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "a run of this name exists already"),
        ("-num_iterations 0", "-num_iterations must be at least 1"),
        ("-seed -1", "-seed must be 0 or larger"),
    ],
)
def test_what_the_results_folder_and_the_numbers_tell_needs_no_torch(make_tiny, words: str, message: str) -> None:
    folder = make_tiny()
    run = folder.parents[1] / "nnUNet_results" / folder.name / f"{DEFAULT_METHOD}__nnUNetPlans__3d_fullres" / "fold_0"
    run.mkdir(parents=True)
    (run / "checkpoint_final.pth").touch()
    command = [sys.executable, "-c", f"{PREPROCESSED}{BLOCKED}", folder.name, "3d_fullres", "0", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_an_unknown_configuration_is_refused_without_importing_torch(make_tiny) -> None:
    command = [sys.executable, "-c", BLOCKED, make_tiny().name, "3d_full", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (2, 3)
    assert "3d_full" in done.stderr
