"""The surface of nnU-Net that nnssl stands on, compared with the installed version."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import logging
import os
import pydoc
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl import host
from nnssl.data.boxes import LocatedPatches, RecordingMirror
from nnssl.data.views import TwoViews
from nnssl.errors import EnvironmentProblem, UsageError
from nnssl.host.entries import HostName
from nnssl.host.surface import SURFACE
from nnssl.host.transforms import KNOWN_TRANSFORMS, PACKAGE, transform_role
from nnssl.inference.predictor import Predictor
from nnssl.planning.planner import CpuPlanner, planner_class
from nnssl.registry import METHODS
from tests.planning.raw_for_tests import DATASET, read_json

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    f for folder in ("nnssl", "nnssl_trainers", "dataset_conversion") for f in (ROOT / folder).rglob("*.py")
)
HOSTS = ("nnunetv2", "batchgenerators", "batchgeneratorsv2", "dynamic_network_architectures", "acvl_utils")

# Modules that may import nnU-Net: the look-ups, and those that derive from its classes or change its transforms.
MAY_IMPORT = {
    "nnssl/host/__init__.py",
    "nnssl/host/preprocessing.py",
    "nnssl/host/transforms.py",
    "nnssl/data/boxes.py",
    "nnssl/data/views.py",
    "nnssl/inference/predictor.py",
    "nnssl_trainers/frame/augmentation.py",
    "nnssl_trainers/frame/checkpointing.py",
    "nnssl_trainers/frame/data_streams.py",
}
# Private names of python and torch that nnssl uses on their objects; functions of these modules are left out.
PRIVATE_ELSEWHERE = {"_asdict", "_cdata", "_orig_mod", "_replace", "_workers"}


# ---------------------------------------------------------------------- the table and the installed version


def problem(entry: HostName) -> str:
    """Return what an upgrade changed about a name, empty where the name is as nnssl expects it."""
    owner = pydoc.locate(entry.owner)
    if owner is None:
        return f"{entry.owner} does not exist"
    if entry.kind == "text":
        quoted = rf"""['"]{re.escape(entry.name)}['"]"""
        return "" if re.search(quoted, inspect.getsource(owner)) else f"'{entry.name}' does not stand in {entry.owner}"
    if entry.kind == "attribute":
        ancestors = [ancestor for ancestor in owner.__mro__ if ancestor.__module__.split(".")[0] in HOSTS]
        assigned = any(entry.name in assigned_to_self(ancestor) for ancestor in ancestors)
        return "" if assigned else f"{entry.owner} no longer assigns self.{entry.name}"
    found = inspect.getattr_static(owner, entry.name, None)
    if found is None:
        return f"{entry.owner} has no {entry.name}"
    return signature_problem(entry, getattr(owner, entry.name)) if entry.kind == "callable" else ""


@functools.cache
def assigned_to_self(owner: type) -> set[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name)
    }


def signature_problem(entry: HostName, found: Callable[..., Any]) -> str:
    if entry.parameters is None:
        return ""
    parameters = [p for p in inspect.signature(found).parameters.values() if p.name != "self"]
    first = tuple(p.name for p in parameters[: len(entry.parameters)])
    if first != entry.parameters:
        return f"{entry.owner}.{entry.name} takes {first}, nnssl expects {entry.parameters}"
    needed = [p.name for p in parameters[len(first) :] if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return f"{entry.owner}.{entry.name} needs further arguments: {', '.join(needed)}" if needed else ""


def message(entry: HostName, changed: str) -> str:
    users = ", ".join(entry.used_in)
    return f"nnunetv2 {version('nnunetv2')}: {changed}. nnssl uses this name in {users} for: {entry.reason}."


@pytest.mark.parametrize("entry", SURFACE, ids=lambda entry: f"{entry.owner.rpartition('.')[2]}.{entry.name}")
def test_nnunet_still_has_what_nnssl_uses(entry: HostName) -> None:
    changed = problem(entry)
    assert not changed, message(entry, changed)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "gone"}, "has no gone"),
        ({"owner": "nnunetv2.no.such"}, "nnunetv2.no.such does not exist"),
        ({"parameters": ("a",)}, r"takes \('batch',\), nnssl expects \('a',\)"),
        ({"parameters": ()}, "needs further arguments: batch"),
        ({"kind": "attribute", "name": "gone"}, "no longer assigns self.gone"),
        ({"kind": "text", "name": "gone"}, "'gone' does not stand in"),
    ],
)
def test_a_change_is_told_with_version_and_user(changes: dict[str, Any], expected: str) -> None:
    (entry,) = (entry for entry in SURFACE if entry.name == "train_step")
    changed = problem(HostName(**{**vars(entry), **changes}))
    assert re.search(expected, changed)
    text = message(entry, changed)
    assert text.startswith(f"nnunetv2 {version('nnunetv2')}: ")
    assert "nnssl_trainers.frame.step" in text
    assert entry.reason in text


# ---------------------------------------------------------------------- the table and our sources


def source_of(module: str) -> str:
    folder = ROOT / module.replace(".", "/")
    return (folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")).read_text(encoding="utf-8")


def test_the_table_has_no_name_that_nnssl_no_longer_uses() -> None:
    unused = [
        f"{entry.name} in {module}"
        for entry in SURFACE
        for module in entry.used_in
        if entry.name != "__init__" and not re.search(rf"\b{entry.name}\b", source_of(module))
    ]
    assert unused == []
    keys = [(entry.owner, entry.name, entry.kind) for entry in SURFACE]
    assert len(set(keys)) == len(keys)


def own_names() -> set[str]:
    """Return the functions, classes and attributes that nnssl defines itself."""
    names = set()
    for node in (node for file in SOURCES for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def attributes_read(file: Path) -> Iterator[tuple[str, ast.Attribute]]:
    """Yield every attribute access of a file, with its place."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            yield f"{file.relative_to(ROOT)}:{node.lineno} {node.attr}", node


def test_every_private_name_of_nnunet_is_in_the_table() -> None:
    known = {entry.name for entry in SURFACE} | PRIVATE_ELSEWHERE | own_names()
    private = re.compile(r"_[^_]")
    strangers = [
        place
        for file in SOURCES
        for place, node in attributes_read(file)
        if private.match(node.attr)
        and node.attr not in known
        and ast.unparse(node.value).split(".")[0] not in {"os", "torch"}
    ]
    assert strangers == []


def test_only_the_look_ups_read_private_attributes_of_foreign_objects() -> None:
    listed = {entry.name for entry in SURFACE if re.match(r"_[^_]", entry.name)}
    strangers = [
        place
        for file in SOURCES
        for place, node in attributes_read(file)
        if node.attr in listed and "nnssl/host/" not in place and ast.unparse(node.value) not in {"self", "super()"}
    ]
    assert strangers == []


def test_every_inherited_attribute_of_a_trainer_is_in_the_table() -> None:
    known = {entry.name for entry in SURFACE} | own_names()
    strangers = [
        place
        for file in SOURCES
        if "nnssl_trainers" in file.parts
        for place, node in attributes_read(file)
        if isinstance(node.value, ast.Name) and node.value.id in {"self", "trainer"} and node.attr not in known
    ]
    assert strangers == []


@pytest.mark.parametrize(
    "own",
    [
        *(pytest.param(method.load, id=name) for name, method in METHODS.items()),
        *(pytest.param(lambda cls=cls: cls, id=cls.__name__) for cls in (Predictor, LocatedPatches, TwoViews)),
        pytest.param(lambda: RecordingMirror, id="RecordingMirror"),
        pytest.param(lambda: planner_class(CpuPlanner, host.find_planner("ExperimentPlanner")), id="planner"),
    ],
)
def test_every_method_of_nnunet_that_nnssl_overrides_is_in_the_table(own: Callable[[], type]) -> None:
    ancestors = own().__mro__
    theirs = [ancestor for ancestor in ancestors if ancestor.__module__.split(".")[0] in HOSTS]
    assert theirs
    inherited = {name for ancestor in theirs for name in vars(ancestor)}
    ours = {name for ancestor in ancestors if ancestor.__module__.startswith("nnssl") for name in vars(ancestor)}
    overridden = {name for name in inherited & ours if not name.startswith("__") or name == "__init__"}
    listed = {entry.name for entry in SURFACE if entry.owner in {f"{c.__module__}.{c.__qualname__}" for c in theirs}}
    private = {"_abc_impl", "_is_protocol", "_parameters"}
    assert overridden - listed - private - {"__init__"} == set()


def test_few_modules_import_nnunet() -> None:
    importing = set()
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(module.split(".")[0] in HOSTS for module in modules):
                importing.add(file.relative_to(ROOT).as_posix())
    assert importing == MAY_IMPORT


def test_importing_the_look_ups_is_light() -> None:
    code = "import sys, nnssl.host.surface, nnssl.host.transforms; print({'torch', 'nnunetv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---------------------------------------------------------------------- transforms


@pytest.mark.parametrize("deep_supervision", [None, [[1.0], [0.5]]])
@pytest.mark.parametrize("regions", [None, [(1, 2), 2]])
@pytest.mark.parametrize("use_mask", [None, [True, False]])
@pytest.mark.parametrize(("patch", "dummy_2d"), [((16, 16), False), ((8, 8, 8), False), ((4, 16, 16), True)])
def test_every_transform_of_nnunets_training_has_a_role(
    patch: tuple[int, ...], dummy_2d: bool, use_mask: Any, regions: Any, deep_supervision: Any
) -> None:
    labels = {"foreground_labels": [1, 2], "regions": regions, "ignore_label": 3}
    training = nnUNetTrainer.get_training_transforms(
        patch, (-0.5, 0.5), deep_supervision, (0, 1), dummy_2d, use_mask_for_norm=use_mask, **labels
    )
    roles = [transform_role(part) for part in training.transforms]
    assert roles.count("masking") == (use_mask is not None)
    assert roles.count("geometric") == (4 if dummy_2d else 2)
    assert roles.count("intensity") == 7
    assert roles.count("labels") == 1 + (regions is not None) + (deep_supervision is not None)
    validation = nnUNetTrainer.get_validation_transforms(deep_supervision, **labels)
    assert {transform_role(part) for part in validation.transforms} == {"labels"}


@pytest.mark.parametrize("path", KNOWN_TRANSFORMS)
def test_known_transforms_exist(path: str) -> None:
    module, _, name = f"{PACKAGE}.{path}".rpartition(".")
    found = getattr(importlib.import_module(module), name, None)
    assert inspect.isclass(found), (
        f"batchgeneratorsv2 {version('batchgeneratorsv2')} has no {module}.{name}; nnssl gives this transform the role "
        f"'{KNOWN_TRANSFORMS[path]}' in the views of unlabelled patches"
    )


def test_a_role_holds_for_subclasses_and_for_random_application() -> None:
    assert transform_role(RandomTransform(MirrorTransform((0,)))) == "geometric"
    assert transform_role(RecordingMirror((0, 1))) == "geometric"
    with pytest.raises(EnvironmentProblem, match="does not know the transform ComposeTransforms"):
        transform_role(nnUNetTrainer.get_validation_transforms(None))


# ---------------------------------------------------------------------- look-ups


def test_find_class_takes_only_what_derives_from_the_base() -> None:
    with pytest.raises(UsageError, match="nnU-Net has no object called 'np'"):
        host.find_class("np", "experiment_planning", object, "-pl")


@pytest.mark.parametrize(
    ("find", "default"),
    [
        (host.find_planner, "ExperimentPlanner"),
        (host.find_preprocessor, "DefaultPreprocessor"),
        (host.find_extractor, "DatasetFingerprintExtractor"),
    ],
)
def test_classes_that_users_name(find: Callable[[str], type], default: str) -> None:
    assert find(default).__name__ == default
    with pytest.raises(UsageError, match=f"no {default} called 'Strange'"):
        find("Strange")


def test_quiet_sends_prints_and_warnings_to_the_log(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG, "nnssl.nnunet"), host.quiet():
        sys.stdout.write("old plans\n\n")
        warnings.warn("strange target", stacklevel=1)
    assert caplog.messages == ["old plans", "strange target"]
    assert capsys.readouterr().out == ""


def test_nnunets_folders_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2 import paths

    monkeypatch.setenv("nnUNet_preprocessed", "/before")
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with host.temporary_dataset(DATASET, {"labels": {}}) as folder:
        assert os.environ["nnUNet_preprocessed"] == str(folder.parent)
        assert str(paths.nnUNet_preprocessed) == str(folder.parent), "nnU-Net read its folders at import"
        assert read_json(Path(os.environ["nnUNet_raw"], DATASET, "dataset.json")) == {"labels": {}}
    assert os.environ["nnUNet_preprocessed"] == "/before"
    assert "nnUNet_raw" not in os.environ
    assert not folder.exists()


def test_a_file_that_planning_cannot_read_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(EnvironmentProblem, match="planning could not read or write") as caught,
        host.temporary_dataset(DATASET, {}),
    ):
        raise OSError(28, "No space left on device", "/full")
    assert caught.value.where == "/full"


def test_the_reader_of_a_data_set() -> None:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    assert host.reader_of({"file_ending": ".nii.gz"}, None, verbose=False) is SimpleITKIO
    assert host.reader_named("SimpleITKIO") is SimpleITKIO
    assert SimpleITKIO in host.readers()
    with pytest.raises(RuntimeError):
        host.reader_of({"file_ending": ".strange"}, None, verbose=False)


def test_a_patch_is_fitted_to_the_pooling_steps() -> None:
    fitted, divisors = host.fit_patch((1.0, 1.0), (30, 17), 4)
    assert [size % divisor for size, divisor in zip(fitted, divisors, strict=True)] == [0, 0]
    assert tuple(fitted) == (32, 20)


def test_numbers_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    assert host.augmentation_workers() == 1
    assert 0 < host.free_port() < 65536


def test_weights_of_overlapping_patches_are_forgotten() -> None:
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    compute_gaussian((4, 4), device=torch.device("cpu"))
    assert compute_gaussian.cache_info().currsize
    host.forget_patch_weights()
    assert not compute_gaussian.cache_info().currsize
