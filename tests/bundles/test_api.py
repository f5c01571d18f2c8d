"""A model goes into a bundle, onto a machine with an empty results folder, and gives the same masks there."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import nnssl
from nnssl.bundles import placing
from nnssl.errors import DataError, EnvironmentProblem, UsageError
from nnssl.evaluation.postprocessing import Postprocessing, Step
from nnssl.training.record import RunRecord, Session
from nnssl.training.settings import RunSettings
from tests.bundles.hostile import HOSTILE, Evil, read, write
from tests.inference.model_for_tests import read_mask, write_model, write_scans

SECRET = "Smith"
pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    """Return a model of two folds with post-processing, a record and a dataset.json that name what is private."""
    results = tmp_path / "origin"
    results.mkdir()
    monkeypatch.setenv("nnUNet_results", str(results))
    folder = write_model(results, folds=(0, 1))
    Postprocessing("cross-validation", 3, (Step("core", (1,), True, "better"),)).write(folder)
    names = ("SupervisedTrainer", "nnUNetPlans", "3d_fullres", "0")
    session = Session(f"nnssl_train -pseudo_labels /data/{SECRET}", "2026")
    RunRecord("Dataset905_Tiny", *names, RunSettings(start_from=f"/{SECRET}"), sessions=(session,)).write(
        folder / "fold_0"
    )
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(description | {"cases": {SECRET: {"patient": SECRET}}}))
    (folder / "dataset_fingerprint.json").write_text(json.dumps({SECRET: 1}))
    (folder / "fold_0" / "validation").mkdir()
    (folder / "fold_0" / "validation" / "summary.json").write_text(json.dumps({SECRET: 1}))
    return folder


@pytest.fixture
def bundle(model, tmp_path) -> Path:
    return nnssl.export_model(model, tmp_path / "model.zip").file


@pytest.fixture
def elsewhere(bundle, tmp_path, monkeypatch) -> Path:
    """Return the empty results folder of another machine."""
    folder = tmp_path / "elsewhere"
    monkeypatch.setenv("nnUNet_results", str(folder))
    return folder


def masks(model: Path, scans: Path, output: Path, **options) -> list[np.ndarray]:
    return [read_mask(path) for path in nnssl.predict(scans, output, model=model, device="cpu", **options)]


def stock_masks(model: Path, scans: Path, output: Path) -> list[np.ndarray]:
    """Return what nnU-Net's own predictor writes with a model, without post-processing."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    output.mkdir()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model), None, "checkpoint_final.pth")
        predictor.predict_from_files_sequential(str(scans), str(output), overwrite=True)
    return [read_mask(path) for path in sorted(output.glob("*.nii.gz"))]


def everything_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_an_installed_model_gives_the_same_masks_without_its_trainer_class(
    model, bundle, elsewhere, tmp_path, monkeypatch
) -> None:
    scans = write_scans(tmp_path / "scans", count=2)
    expected = masks(model, scans, tmp_path / "first")
    stock = stock_masks(model, scans, tmp_path / "stock")
    shutil.rmtree(model.parents[1])
    for name in [name for name in sys.modules if name.startswith("nnssl_trainers")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "nnssl_trainers", None)
    result = nnssl.install_model(bundle)
    assert result.models == [elsewhere / "Dataset905_Tiny" / "SupervisedTrainer__nnUNetPlans__3d_fullres"]
    assert (result.kind, result.folds, result.notes) == ("nnssl", ["0", "1"], [])
    found = masks(result.models[0], scans, tmp_path / "second")
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
    assert any((a > 0).any() for a in expected)
    again = stock_masks(result.models[0], scans, tmp_path / "stock again")
    assert all(np.array_equal(a, b) for a, b in zip(stock, again, strict=True))
    assert any((a != b).any() for a, b in zip(stock, expected, strict=True))  # post-processing has an effect


def test_installed_files_hold_numbers_and_text_only_and_nothing_private(bundle, elsewhere) -> None:
    (folder,) = nnssl.install_model(bundle).models
    assert everything_below(elsewhere) == [
        "Dataset905_Tiny",
        *(f"Dataset905_Tiny/{name}" for name in [folder.name, *(f"{folder.name}/{each}" for each in (
            "dataset.json", "fold_0", "fold_0/checkpoint_final.pth", "fold_0/run.json", "fold_1",
            "fold_1/checkpoint_final.pth", "plans.json", "postprocessing.json",
        ))]),
    ]  # fmt: skip
    for file in (file for file in elsewhere.rglob("*") if file.is_file()):
        assert SECRET.encode() not in file.read_bytes()
    content = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert content["trainer_name"] == "nnUNetTrainer"
    record = RunRecord.read(folder / "fold_0")
    assert record is not None
    assert record.sessions[0].command == "nnssl_train -pseudo_labels PATH"
    assert [run.trainer for run in nnssl.runs()] == ["SupervisedTrainer"] * 2


def test_a_bundle_has_no_pickle_nothing_private_and_always_the_same_bytes(model, bundle, tmp_path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        assert sorted(archive.namelist()) == [
            "dataset.json", "fold_0/network.json", "fold_0/run.json", "fold_0/weights.safetensors",
            "fold_1/network.json", "fold_1/weights.safetensors", "manifest.json", "plans.json", "postprocessing.json",
        ]  # fmt: skip
        assert all(SECRET.encode() not in archive.read(name) for name in archive.namelist())
        weights = archive.read("fold_0/weights.safetensors")
        assert not json.loads(archive.read("manifest.json"))["files"].keys() ^ (
            set(archive.namelist()) - {"manifest.json"}
        )
    stored = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    numbers = {tensor.data_ptr(): tensor.numel() * 4 for tensor in stored.values()}
    assert sum(numbers.values()) <= len(weights) < 1.2 * sum(numbers.values()) + 8000  # shared weights stand once
    second = nnssl.export_model(model, tmp_path / "again.zip")
    assert second.file.read_bytes() == bundle.read_bytes()
    assert second.bytes == bundle.stat().st_size


def test_folds_and_names_choose_what_is_exported(model, tmp_path) -> None:
    name = f"{model.parent.name}/{model.name}"
    for given, options, folds in (
        (model / "fold_1", {}, ["1"]),
        (model.name, {"folds": ["0"]}, ["0"]),
        (name, {}, ["0", "1"]),
        (f"{name}/fold_0", {}, ["0"]),
    ):
        assert nnssl.export_model(given, tmp_path / "part.zip", **options).folds == folds


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "nowhere"}, "no such model"),
        ({"output": "model.tar"}, "a .zip file"),
        ({"folds": ["7"]}, "fold 7"),
    ],
)
def test_wrong_arguments_of_an_export(options, words, model, tmp_path) -> None:
    options = {"model": model, "output": "model.zip", **options}
    with pytest.raises(UsageError, match=words):
        nnssl.export_model(options.pop("model"), tmp_path / options.pop("output"), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["origin"]


def test_a_model_whose_name_is_not_known_or_ambiguous_is_not_exported(model, tmp_path) -> None:
    shutil.copytree(model.parent, model.parents[1] / "Dataset906_Other")
    with pytest.raises(UsageError, match="several models"):
        nnssl.export_model(model.name, tmp_path / "model.zip")
    model.rename(tmp_path / "copy")
    with pytest.raises(UsageError, match="no name of a model"):
        nnssl.export_model(tmp_path / "copy", tmp_path / "model.zip")


def test_networks_that_plans_do_not_describe_are_not_exported(model, tmp_path) -> None:
    path = model / "fold_1" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "network_weights": {"other": torch.zeros(3)}}, path)
    with pytest.raises(UsageError, match="plans do not describe"):
        nnssl.export_model(model, tmp_path / "model.zip")
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "my_lab.Network"
    (model / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(UsageError, match="neither nnU-Net nor nnssl"):
        nnssl.export_model(model, tmp_path / "model.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["origin"]


def test_onnx_needs_its_packages(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("nnssl.bundles.onnx_file.PACKAGES", ("no_such_package",))
    with pytest.raises(EnvironmentProblem, match="needs no_such_package") as error:
        nnssl.export_model(model, tmp_path / "model.zip", onnx=tmp_path / "model.onnx")
    assert "nnssl-semi[onnx]" in error.value.run
    assert not (tmp_path / "model.zip").exists()


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_bundles_leave_no_trace(kind, bundle, elsewhere, tmp_path) -> None:
    change, words = HOSTILE[kind]
    write(bundle, change(read(bundle)))
    before = everything_below(tmp_path)
    with pytest.raises(DataError, match="nothing was installed") as error:
        nnssl.install_model(bundle)
    assert words in error.value.why
    assert error.value.exit_code == 3
    assert everything_below(tmp_path) == before


def edited(name: str, change) -> object:
    """Return a change of one JSON entry; its size and hash in the manifest follow."""
    import hashlib

    def edit(entries):
        contents = {info.filename: content for info, content in entries}
        value = json.loads(contents[name])
        change(value)
        contents[name] = json.dumps(value).encode()
        if name != "manifest.json":
            manifest = json.loads(contents["manifest.json"])
            new = {"bytes": len(contents[name]), "sha256": hashlib.sha256(contents[name]).hexdigest()}
            manifest["files"][name] = new
            contents["manifest.json"] = json.dumps(manifest).encode()
        return [(info, contents[info.filename]) for info, _ in entries]

    return edit


def flipped(entries):
    """Change one number of the weights; the archive's own checksum is right again."""
    return [
        (info, content[:-1] + bytes([content[-1] ^ 1]) if info.filename == "fold_1/weights.safetensors" else content)
        for info, content in entries
    ]


def without(name: str):
    return lambda entries: [pair for pair in entries if pair[0].filename != name]


def setting(*path: object):
    """Return a function that sets a nested value: the last argument, at the place that the others name."""
    *places, last, value = path

    def change(content) -> None:
        for place in places:
            content = content[place]
        content[last] = value

    return change


ARCHITECTURE = ("configurations", "3d_fullres", "architecture")
SPOILT = {
    "hash": (flipped, "SHA-256"),
    "hash of another": (
        edited("manifest.json", setting("files", "plans.json", "sha256", "0" * 64)),
        "plans.json has the SHA-256",
    ),
    "size": (edited("manifest.json", setting("files", "plans.json", "bytes", 1)), "its manifest says 1"),
    "weights missing": (without("fold_0/weights.safetensors"), "missing"),
    "manifest of the future": (edited("manifest.json", setting("version", 99)), "this version reads"),
    "manifest without folds": (edited("manifest.json", setting("folds", [])), "folds"),
    "fold that is a path": (edited("manifest.json", setting("folds", ["../0"])), "folds"),
    "data set that is a path": (edited("manifest.json", setting("dataset", "../Dataset905_Tiny")), "data set"),
    "trainer that is a path": (edited("manifest.json", setting("trainer", "../Evil")), "no name of a model"),
    "trainer with two names": (edited("manifest.json", setting("trainer", "a__b")), "no name of a model"),
    "tag that is no text": (edited("manifest.json", setting("tag", 5)), "incomplete"),
    "listed stranger": (
        edited("manifest.json", setting("files", "evil.py", {"bytes": 1, "sha256": ""})),
        "which no bundle has",
    ),
    "function in the plans": (
        edited("plans.json", setting(*ARCHITECTURE, "network_class_name", "os.system")),
        "network_class_name",
    ),
    "another network": (
        edited("plans.json", setting(*ARCHITECTURE, "arch_kwargs", "features_per_stage", [2, 2, 2])),
        "do not fit the network",
    ),
    "network that cannot be": (
        edited("plans.json", setting(*ARCHITECTURE, "arch_kwargs", "n_stages", "x")),
        "cannot be built",
    ),
    "labels": (edited("dataset.json", setting("labels", 3)), "labels"),
    "post-processing": (edited("postprocessing.json", setting("evidence", "magic")), "post-processing"),
    "record": (edited("fold_0/run.json", setting("settings", 3)), "no record"),
    "alias": (edited("fold_0/network.json", setting("aliases", {"a": "b"})), "do not fit together"),
    "mirroring": (edited("fold_0/network.json", setting("mirror_axes", [9])), "do not fit together"),
    "control characters": (edited("fold_0/run.json", setting("trainer", "\x1b[2J")), "control characters"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_spoilt_bundles_leave_no_trace(kind, bundle, elsewhere, tmp_path) -> None:
    change, words = SPOILT[kind]
    write(bundle, change(read(bundle)))
    before = everything_below(tmp_path)
    with pytest.raises(DataError, match="nothing was installed") as error:
        nnssl.install_model(bundle)
    assert words in error.value.why
    assert everything_below(tmp_path / "elsewhere") == []
    assert [path for path in everything_below(tmp_path) if path != "elsewhere"] == before


def test_a_model_that_is_there_is_kept_or_replaced_as_a_whole(bundle, elsewhere, monkeypatch) -> None:
    (folder,) = nnssl.install_model(bundle).models
    (folder / "mine.txt").write_text("kept")
    with pytest.raises(UsageError, match="installed or was trained") as error:
        nnssl.install_model(bundle)
    assert "--overwrite" in error.value.run

    real = Path.rename

    def fails_at_the_end(self: Path, target: Path) -> Path:
        if self.name == "model":
            raise OSError("no space")
        return real(self, target)

    with monkeypatch.context() as patch, pytest.raises(EnvironmentProblem, match="could not be installed"):
        patch.setattr(Path, "rename", fails_at_the_end)
        nnssl.install_model(bundle, overwrite=True)
    assert (folder / "mine.txt").read_text() == "kept"
    nnssl.install_model(bundle, overwrite=True)
    assert not (folder / "mine.txt").exists()
    assert (folder / "plans.json").is_file()
    assert os.listdir(elsewhere) == ["Dataset905_Tiny"]
    assert os.listdir(folder.parent) == [folder.name]


def test_what_a_killed_installation_left_is_put_right(bundle, elsewhere) -> None:
    (folder,) = nnssl.install_model(bundle).models
    folder.rename(placing.aside_of(folder))
    (elsewhere / placing.STAGING).mkdir()
    (elsewhere / placing.STAGING / "half").write_text("")
    with pytest.raises(UsageError, match="installed or was trained"):
        nnssl.install_model(bundle)
    assert (folder / "plans.json").is_file()
    nnssl.install_model(bundle, overwrite=True)
    assert os.listdir(elsewhere) == ["Dataset905_Tiny"]


def test_another_data_set_of_the_same_id_is_told(bundle, elsewhere) -> None:
    (elsewhere / "Dataset905_Other").mkdir(parents=True)
    (note,) = nnssl.install_model(bundle).notes
    assert "Dataset905_Other" in note


# ---------------------------------------------------------------------- exports of stock nnU-Net


@pytest.fixture
def stock_model(tmp_path, monkeypatch) -> Path:
    results = tmp_path / "origin"
    results.mkdir()
    folder = write_model(results, folds=(0,), trainer="nnUNetTrainer")
    path = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=True)
    del content["nnssl_semi"]
    content["logging"] = {"dice": [np.float64(0.5)]}  # as stock nnU-Net keeps it
    torch.save(content, path)
    return folder


@pytest.fixture
def stock_zip(stock_model, tmp_path, monkeypatch) -> Path:
    """Return what nnU-Net's own command exports."""
    fold = stock_model / "fold_0"
    (fold / "validation").mkdir()
    for file in (fold / "progress.png", fold / "validation" / "summary.json", stock_model / "dataset_fingerprint.json"):
        file.write_text("{}")
    cross = stock_model / "crossval_results_folds_0"
    cross.mkdir()
    (cross / "postprocessing.pkl").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    from nnunetv2.model_sharing import model_export

    monkeypatch.setattr(model_export, "nnUNet_results", str(stock_model.parents[1]))
    monkeypatch.setattr(
        model_export, "get_output_folder", lambda *_: str(stock_model)
    )  # nnU-Net reads its folders at import
    monkeypatch.setattr(model_export, "maybe_convert_to_dataset_name", lambda _: stock_model.parent.name)
    file = tmp_path / "stock.zip"
    with contextlib.redirect_stdout(io.StringIO()):
        model_export.export_pretrained_model(905, str(file), ("3d_fullres",), folds=(0,))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "elsewhere"))
    return file


def test_a_stock_export_is_installed_and_gives_the_same_masks(stock_model, stock_zip, tmp_path) -> None:
    scans = write_scans(tmp_path / "scans", count=1)
    result = nnssl.install_model(stock_zip)
    (folder,) = result.models
    assert result.kind == "nnU-Net"
    assert result.notes == ["4 files that prediction does not need stayed in the archive, unread"]
    assert sorted(path for path in everything_below(folder) if "." in path) == [
        "dataset.json", "fold_0/checkpoint_final.pth", "plans.json",
    ]  # fmt: skip
    expected, found = (
        stock_masks(each, scans, tmp_path / f"masks of {each.parents[1].name}") for each in (stock_model, folder)
    )
    ours = masks(folder, scans, tmp_path / "ours")
    assert np.array_equal(expected[0], found[0])
    assert np.array_equal(expected[0], ours[0])
    assert expected[0].any()
    content = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert set(content) == {
        "network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes",
    }  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_stock_exports_leave_no_trace(kind, stock_zip, tmp_path) -> None:
    change, words = HOSTILE[kind]
    write(stock_zip, change(read(stock_zip)))
    before = everything_below(tmp_path)
    with pytest.raises(DataError, match="nothing was installed") as error:
        nnssl.install_model(stock_zip)
    assert words in error.value.why
    assert everything_below(tmp_path) == before


def with_checkpoint(content: bytes):
    return lambda entries: [
        (info, content if info.filename.endswith(".pth") else old) for info, old in entries
    ]  # fmt: skip


def test_pickles_in_stock_checkpoints_are_never_run(stock_zip, stock_model, tmp_path) -> None:
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save({"network_weights": {}, "trainer_name": Evil(mark)}, buffer)
    good = (stock_model / "fold_0" / "checkpoint_final.pth").read_bytes()
    entries = read(stock_zip)
    for content in (buffer.getvalue(), good[: len(good) // 2], b"", b"no checkpoint"):
        write(stock_zip, with_checkpoint(content)(entries))
        with pytest.raises(DataError, match="nothing was installed"):
            nnssl.install_model(stock_zip)
    assert not mark.exists()
    assert everything_below(tmp_path / "elsewhere") == []
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert mark.exists()  # it is a pickle that would have run


def test_a_stock_checkpoint_that_unpacks_to_more_than_it_has_is_refused(stock_zip, tmp_path) -> None:
    bomb = tmp_path / "bomb"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(32 << 20))
    write(stock_zip, with_checkpoint(bomb.read_bytes())(read(stock_zip)))
    with pytest.raises(DataError, match="nothing was installed") as error:
        nnssl.install_model(stock_zip)
    assert "far more than it has" in error.value.why


def test_an_archive_of_something_else_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "elsewhere"))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match="nothing was installed") as error:
        nnssl.install_model(tmp_path / "other.zip")
    assert "neither a bundle" in error.value.why
    assert not (tmp_path / "elsewhere").exists()


def test_a_stock_model_whose_trainer_builds_another_network_says_so(stock_model, stock_zip) -> None:
    entries = read(stock_zip)
    buffer = io.BytesIO()
    content = torch.load(stock_model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    torch.save({**content, "network_weights": {"other": torch.zeros(2)}, "trainer_name": "MyTrainer"}, buffer)
    write(stock_zip, with_checkpoint(buffer.getvalue())(entries))
    result = nnssl.install_model(stock_zip)
    assert any("prediction needs MyTrainer" in note for note in result.notes)
