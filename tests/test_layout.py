"""The shape of the project: length of files, layer of each module, test of each module, places of each method."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from nnssl.dataset_conversion.engine.table import CONVERTERS
from nnssl.registry import METHODS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SOURCES = ("nnssl", "nnssl_trainers", "dataset_conversion")
FILES = sorted(file for folder in SOURCES for file in (ROOT / folder).rglob("*.py"))
LIMITS = {"nnssl_trainers/methods": 200, "nnssl/cli": 80}  # lines; other files may have 400
SHARED_BY_COMMANDS = "nnssl/cli/runtime.py"

# The test file of a module has the module's name and place. The modules below are tested through the module that calls
# them, or in one table with others of their kind; the key is the test file that does so.
TESTED_BY = {
    "annotation/test_quality.py": ("nnssl/annotation/known_cases.py", "nnssl/annotation/members.py"),
    "bundles/test_api.py": (
        "nnssl/bundles/layout.py",
        "nnssl/bundles/placing.py",
        "nnssl/bundles/reading.py",
        "nnssl/bundles/stock.py",
        "nnssl/bundles/writing.py",
    ),
    "cleaning/test_api.py": ("nnssl/cleaning/references.py",),
    "comparison/test_api.py": ("nnssl/comparison/result.py",),
    "cli/test_bad_input.py": ("nnssl/system/signals.py",),
    "cli/test_train.py": (
        "nnssl/training/api.py",
        "nnssl/training/choice.py",
        "nnssl/training/job.py",
    ),
    "inference/test_api.py": ("nnssl/inference/images.py", "nnssl/inference/network.py", "nnssl/inference/records.py"),
    "networks/test_networks.py": (
        "nnssl/networks/cce_pair.py",
        "nnssl/networks/layers.py",
        "nnssl/networks/outputs.py",
        "nnssl/networks/resnet34_vnet.py",
        "nnssl/networks/unet_bcp.py",
        "nnssl/networks/vnet.py",
        "nnssl/networks/vnet_multiscale.py",
    ),
    "journey/test_api.py": ("nnssl/journey/steps.py",),
    "nnssl_trainers/test_contract.py": ("nnssl/registry.py",),
    "planning/test_planner.py": (
        "nnssl/planning/fingerprint.py",
        "nnssl/planning/plans.py",
    ),
    "planning/test_preprocessing.py": ("nnssl/planning/manifest.py", "nnssl/planning/references.py"),
    "planning/test_sharing.py": ("nnssl/planning/case_files.py",),
    "test_host.py": (
        "nnssl/host/entries.py",
        "nnssl/host/surface.py",
        "nnssl/host/training.py",
        "nnssl/host/transforms.py",
    ),
    "test_wheel.py": ("nnssl/version.py",),
}

# These test files follow one question through several modules.
ACROSS_MODULES = {
    "annotation/test_round.py",
    "cli/test_awkward_data.py",
    "cli/test_json.py",
    "cli/test_own_data.py",
    "data/test_worker_errors.py",
    "dataset_conversion/test_broken.py",
    "nnssl_trainers/test_gpu.py",
    "nnssl_trainers/test_label_leak.py",
    "nnssl_trainers/test_stock_nnunet.py",
    "test_commands.py",
    "test_contributing.py",
    "test_docker.py",
    "test_docs.py",
    "test_layout.py",
    "test_python_versions.py",
    "test_readme.py",
    "test_real_data.py",
    "test_road.py",
    "test_sdist.py",
    "test_spawn.py",
    "test_typing.py",
}


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def module_name(file: Path) -> str:
    """Return the dotted name under which a file is installed."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = ("nnssl", *parts) if parts[0] == "dataset_conversion" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place_of_test(source: str) -> str:
    """Return where below `tests` the test file of a module belongs."""
    path = Path(source)
    folder = path.parent.relative_to("nnssl") if path.parts[0] == "nnssl" else path.parent
    return (folder / f"test_{path.name}").as_posix()


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_no_file_is_too_long() -> None:
    assert len(FILES) > 100
    lengths = {relative(file): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    limits = {file: LIMITS.get(str(Path(file).parent), 400) for file in lengths} | {SHARED_BY_COMMANDS: 400}
    assert {file: lines for file, lines in lengths.items() if lines > limits[file]} == {}


def test_the_packages_are_the_folders(pyproject: dict[str, Any]) -> None:
    listed = pyproject["tool"]["setuptools"]["packages"]
    folders = {file.parent for file in FILES}
    assert sorted(listed) == sorted(module_name(folder / "__init__.py") for folder in folders)
    with_data = {file.parent for folder in SOURCES for file in (ROOT / folder).rglob("*.json")}
    assert with_data == {ROOT / "nnssl", ROOT / "nnssl" / "data" / "protocols"}


def test_every_module_has_a_layer(pyproject: dict[str, Any]) -> None:
    contracts = pyproject["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    listed = [name.strip("() ") for layer in layers for name in layer.replace("|", ":").split(":")]
    modules = [module_name(file) for file in FILES if file.name != "__init__.py" and file.parent.name != "bridge"]
    assert [name for name in modules if not any(f"{name}.".startswith(f"{layer}.") for layer in listed)] == []


def test_every_module_has_a_test_file() -> None:
    elsewhere = [source for sources in TESTED_BY.values() for source in sources]
    modules = [relative(file) for file in FILES if file.name != "__init__.py"]
    own = {source: (ROOT / "tests" / place_of_test(source)).is_file() for source in modules}
    assert [source for source in modules if not own[source] and source not in elsewhere] == []
    assert [source for source in elsewhere if own.get(source, True)] == []
    assert [name for name in TESTED_BY if not (ROOT / "tests" / name).is_file()] == []


def test_every_test_file_has_a_module() -> None:
    packages = {f"{relative(file.parent)}.py" for file in FILES if file.name == "__init__.py"}
    expected = {place_of_test(source) for source in packages | {relative(file) for file in FILES}}
    tests = {file.relative_to(ROOT / "tests").as_posix() for file in (ROOT / "tests").rglob("test_*.py")}
    assert tests - expected - ACROSS_MODULES <= set(TESTED_BY)
    assert tests >= ACROSS_MODULES


@pytest.mark.parametrize(
    "place", ["nnssl_trainers/methods/{}.py", "docs/methods/{}.md", "tests/nnssl_trainers/methods/test_{}.py"]
)
def test_a_method_is_found_under_one_name(place: str) -> None:
    names = {method.name for method in METHODS.values()}
    assert set_of_names(place) == names


@pytest.mark.parametrize(
    "place", ["dataset_conversion/{}.py", "docs/conversion/{}.md", "tests/dataset_conversion/test_{}.py"]
)
def test_a_converter_is_found_under_one_name(place: str) -> None:
    assert set_of_names(place) - {"api", "broken"} == set(CONVERTERS)


def set_of_names(place: str) -> set[str]:
    """Return what stands for `{}` in the files that match, without `__init__` and `index`."""
    before, after = Path(place).name.split("{}")
    files = (ROOT / place).parent.glob(f"{before}*{after}")
    return {file.name.removeprefix(before).removesuffix(after) for file in files} - {"__init__", "index"}
