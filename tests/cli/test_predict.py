from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

from nnssl.cli.predict import main, make_parser
from nnssl.evaluation.postprocessing import Postprocessing, Step
from tests.inference import conftest as fixtures
from tests.inference.model_for_tests import read_mask, write_model

results, model, scans = fixtures.results, fixtures.model, fixtures.scans


@pytest.fixture(autouse=True)
def _one_core_and_no_gpu(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_input_and_output_are_enough_where_one_model_is_trained(model, scans, tmp_path, capsys):
    output = tmp_path / "preds"
    assert run("-i", scans, "-o", output) == 0
    assert set(np.unique(read_mask(output / "case_0.nii.gz"))) == {0, 1, 2}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].endswith("-tr SupervisedTrainer -p nnUNetPlans -c 3d_fullres -tag default, folds 0 1, on cpu")
    assert lines[1].startswith("3 of 3 masks predicted in ")
    assert lines[2] == f"next: nnssl_evaluate LABELS {output}"
    written = {file.name for file in output.iterdir()}
    assert {"dataset.json", "plans.json", "predict_from_raw_data_args.json", "case_2.nii.gz"} <= written


def test_the_post_processing_of_the_model_is_followed_unless_it_is_off(model, scans, tmp_path, capsys):
    decision = Postprocessing("cross-validation", 8, (Step("rim", (2,), True),))
    decision.write(model)
    options = ("-i", scans, "-f", 0, "--disable_tta")
    assert run(*options, "-o", tmp_path / "with") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "post-processing: largest component of rim (cross-validation, 8 cases)"
    assert len(lines) == 4
    assert run(*options, "-o", tmp_path / "without", "--no_postprocessing") == 0
    assert "post-processing" not in capsys.readouterr().out
    told = []
    for folder in ("with", "without"):
        arguments = json.loads((tmp_path / folder / "predict_from_raw_data_args.json").read_text())
        told.append(arguments["nnssl_semi"]["postprocessing"])
    assert told == [str(decision), ""]
    changed = 0
    for case in range(3):
        cleaned, raw = (read_mask(tmp_path / folder / f"case_{case}.nii.gz") for folder in ("with", "without"))
        np.testing.assert_array_equal(cleaned, remove_all_but_largest_component_from_segmentation(raw, 2))
        changed += np.count_nonzero(cleaned != raw)
    assert changed
    assert run(*options, "-o", tmp_path / "json", "--json") == 0
    assert json.loads(capsys.readouterr().out)["postprocessing"] == str(decision)


def test_labels_beside_the_images_are_named(model, scans, tmp_path, capsys):
    (tmp_path / "labelsTs").mkdir()
    assert run("-i", f"{scans}/", "-o", tmp_path / "preds") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: nnssl_evaluate {tmp_path / 'labelsTs'} {tmp_path}/preds"


def test_several_models_are_listed(model, results, scans, tmp_path, capsys):
    write_model(results, trainer="MeanTeacherTrainer")
    assert run("-i", scans, "-o", tmp_path / "preds") == 2
    message = capsys.readouterr().err
    assert "-tr SupervisedTrainer -p nnUNetPlans" in message
    assert "-tr MeanTeacherTrainer -p nnUNetPlans" in message
    assert not (tmp_path / "preds").exists()
    assert run("-i", scans, "-o", tmp_path / "preds", "-d", 905, "-tr", "MeanTeacherTrainer", "--disable_tta") == 0
    assert run("-i", scans, "-o", tmp_path / "others", "-m", model, "-f", 1, "-step_size", 1) == 0


def test_runs_of_one_method_are_told_apart_by_their_tag(model, results, scans, tmp_path, capsys):
    model.rename(model.with_name(f"{model.name}@seed1"))
    write_model(results)
    assert run("-i", scans, "-o", tmp_path / "preds") == 2
    assert "-c 3d_fullres -tag seed1   (folds 0 1)" in capsys.readouterr().err
    assert run("-i", scans, "-o", tmp_path / "preds", "-tag", "seed1", "--disable_tta") == 0
    assert "-tag seed1, folds 0 1" in capsys.readouterr().out
    assert run("-i", scans, "-o", tmp_path / "others", "-tag", "default", "--disable_tta") == 0
    assert run("-i", scans, "-o", tmp_path / "none", "-tag", "seed2") == 2


def test_json_is_alone_on_standard_output(model, scans, tmp_path, capsys):
    output = tmp_path / "preds"
    assert run("-i", scans, "-o", output, "--json", "--verbose", "--disable_tta", "-f", 1) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["masks"] == [str(output / f"case_{case}.nii.gz") for case in range(3)]
    assert (printed["predicted"], printed["folds"], printed["model"]) == (3, ["1"], str(model))
    arguments = json.loads((output / "predict_from_raw_data_args.json").read_text())
    assert arguments["nnssl_semi"]["mirroring"] is False


def test_continue(model, scans, tmp_path, capsys):
    arguments = ("-i", scans, "-o", tmp_path / "preds", "-f", 0, "--disable_tta")
    assert run(*arguments) == 0
    (tmp_path / "preds" / "case_1.nii.gz").unlink()
    assert run(*arguments, "--continue_prediction") == 0
    assert "1 of 3 masks predicted" in capsys.readouterr().out


def test_several_runs_are_an_ensemble(model, results, scans, tmp_path, capsys):
    other = write_model(results, folds=(2,), trainer="FixMatchTrainer")
    arguments = ("-i", scans, "-o", tmp_path / "both", "--disable_tta", "-m")
    assert run(*arguments, model, other.name) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "-tr SupervisedTrainer" in lines[0]
    assert lines[0].endswith("folds 0 1, on cpu")
    assert "-tr FixMatchTrainer" in lines[1]
    assert lines[1].endswith("folds 2, on cpu")
    assert lines[2] == "ensemble: mean probabilities of 2 models"
    (tmp_path / "both" / "case_1.nii.gz").unlink()
    assert run(*arguments, model, other.name, "--c", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["predicted"], printed["model"], printed["folds"]) == (1, None, [])
    told = [{"model": str(model), "folds": ["0", "1"]}, {"model": str(other), "folds": ["2"]}]
    assert printed["models"] == told


def spoil_image(scans, **_):
    file = scans / "case_1_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:1000])


def spoil_checkpoint(model, **_):
    file = model / "fold_1" / "checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[:1000])


def leave_unfinished(model, **_):
    for fold in (0, 1):
        (model / f"fold_{fold}" / "checkpoint_final.pth").rename(model / f"fold_{fold}" / "checkpoint_best.pth")


def add_channel(scans, **_):
    (scans / "case_1_0001.nii.gz").write_bytes((scans / "case_1_0000.nii.gz").read_bytes())


def add_uncompressed(scans, **_):
    for case in (0, 1, 2):
        (scans / f"case_{case}_0000.nii.gz").rename(scans / f"case_{case}.nii.gz")
    (scans / "case_3.nii").write_bytes(b"scan")


def empty(scans, **_):
    for file in scans.iterdir():
        file.unlink()


def no_model(model, **_):
    (model / "plans.json").unlink()


def nothing(**_):
    pass


@pytest.mark.parametrize(
    ("spoil", "options", "code", "message"),
    [
        (spoil_image, [], 3, "case_1_0000.nii.gz"),
        (add_uncompressed, [], 3, "the model was trained on .nii.gz files; other endings: case_3.nii"),
        (add_channel, [], 3, "2 channel(s) in case_1_0000.nii.gz"),
        (empty, [], 3, "there are no scans to predict"),
        (spoil_checkpoint, [], 4, "fold_1/checkpoint_final.pth"),
        (leave_unfinished, [], 2, "training of this model has not ended"),
        (no_model, [], 2, "there is no trained model"),
        (nothing, ["-i", "{tmp}/none"], 3, "does not exist"),
        (nothing, ["-o", "{tmp}/imagesTs"], 2, "folder of the scans"),
        (nothing, ["-o", "{tmp}/imagesTs/case_0_0000.nii.gz/out"], 4, "is a file"),
        (nothing, ["-f", "0", "4"], 2, "-f 0 1"),
        (nothing, ["-d", "17"], 2, "no trained model fits"),
        (nothing, ["-m", "{tmp}"], 3, "not a model folder"),
        (nothing, ["-m", "{tmp}", "{tmp}"], 3, "not a model folder"),
        (nothing, ["-m", "SupervisedTrainer__nnUNetPlans__3d_fullres", "None__a__b"], 2, "there is no such model"),
        (nothing, ["-m", *["SupervisedTrainer__nnUNetPlans__3d_fullres"] * 2], 2, "fold 0, 1 stands twice"),
        (nothing, ["-chk", "checkpoint_x.pth"], 2, "checkpoint_x.pth"),
        (nothing, ["-device", "cuda"], 4, "no cuda device"),
        (nothing, ["-step_size", "1.5"], 2, "-step_size"),
        (nothing, ["-part_id", "1"], 2, "-part_id 1"),
        (nothing, ["-npp", "-1"], 2, "-npp"),
        (nothing, ["-prev_stage_predictions", "x"], 2, "cascades"),
    ],
)
def test_bad_input_ends_with_one_message_and_nothing_written(
    model, scans, tmp_path, capsys, *, spoil, options, code, message
):
    spoil(model=model, scans=scans)
    before = sorted(tmp_path.rglob("*"))
    given = [option.format(tmp=tmp_path) for option in options]
    assert run("-i", scans, "-o", tmp_path / "preds", *given) == code
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.count("error:") == 1
    assert message in printed.err
    assert sorted(tmp_path.rglob("*")) == before


def test_results_variable_not_set(scans, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_results", raising=False)
    assert run("-i", scans, "-o", tmp_path / "preds") == 4
    assert "export nnUNet_results=" in capsys.readouterr().err


def test_error_as_json(results, scans, tmp_path, capsys):
    assert run("-i", scans, "-o", tmp_path / "preds", "--json") == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


@pytest.mark.parametrize(
    "flag",
    [
        *("-i", "-o", "-d", "-p", "-tr", "-c", "-f", "-m", "-chk", "-npp", "-nps", "-num_parts", "-part_id", "-device"),
        *("-step_size", "-prev_stage_predictions", "--disable_tta", "--save_probabilities", "--continue_prediction"),
        *("--verbose", "--disable_progress_bar", "--not_on_device"),
    ],
)
def test_flags_of_nnunet_are_there(flag):
    assert flag in make_parser()._option_string_actions


def test_help_needs_no_torch():
    code = "import sys; sys.argv = ['p', '-h']; import nnssl_commands as c; import atexit; "
    code += "atexit.register(lambda: print('torch' in sys.modules)); c.predict()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("False\n")
    assert "-step_size" in done.stdout
