"""Every `--json`, checked against a schema: strict JSON, the named keys, numbers as numbers."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from jsonschema import validate

from tests.cli.bad_input_world import few_samples_and_steps

TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
NUMBER, MAYBE = {"type": "number"}, {"type": ["number", "null"]}
SHARE = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
TEXTS, DICT = {"type": "array", "items": TEXT}, {"type": "object"}


def keys(**properties: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has these keys, and may have others."""
    return {"type": "object", "required": list(properties), "properties": properties}


SETTINGS = keys(num_iterations=COUNT, seed=COUNT, bf16=FLAG, config=DICT, tag=TEXT)
SESSION = keys(
    command=TEXT, started=TEXT, ended=TEXT, first_iteration=COUNT, versions=DICT, peak_memory_bytes=COUNT,
    machine=keys(platform=TEXT, processor=TEXT, cores=COUNT, device=TEXT), git={"type": ["object", "null"]},
)  # fmt: skip
RECORD = keys(
    dataset=TEXT, trainer=TEXT, plans=TEXT, configuration=TEXT, fold=TEXT, settings=SETTINGS, iteration=COUNT,
    state={"enum": ["running", "stopped", "failed", "done"]},
    sessions={"type": "array", "items": SESSION, "minItems": 1},
    plans_hash=TEXT, data=DICT, seconds_per_iteration=NUMBER, scores=keys(dice=SHARE, dice_by_label=DICT),
)  # fmt: skip
SCHEMAS = {
    "phantom": keys(folder=TEXT, dataset=TEXT),
    "plan_and_preprocess": keys(
        plans={
            "type": "array",
            "items": keys(dataset=TEXT, plans_name=TEXT, plans_path=TEXT, configurations=DICT, cases=DICT,
                          next_commands=TEXTS, warnings=TEXTS),
        }
    ),
    "train": keys(folder=TEXT, checkpoint=TEXT, summary=TEXT, settings=SETTINGS, record=RECORD),
    "predict": keys(masks=TEXTS, predicted=COUNT, folds=TEXTS, model=TEXT, models={"type": "array"}, device=TEXT,
                    postprocessing=TEXT, memory_bytes=COUNT, seconds=NUMBER),
    "pseudo_label": keys(folder=TEXT, scores=TEXT, cases=TEXTS, kept=TEXTS, predicted=COUNT, models=TEXTS, device=TEXT),
    "evaluate": keys(
        summary_file=TEXT, foreground_mean=keys(Dice=SHARE), mean=DICT, structures=DICT,
        metric_per_case={"type": "array", "items": keys(metrics=DICT, reference_file=TEXT, prediction_file=TEXT)},
    ),
    "sweep": {
        "type": "array",
        "minItems": 2,
        "items": keys(command=TEXT, trainer=TEXT, configuration=TEXT, fold=TEXT, labelled={"type": ["string", "null"]},
                      pick=COUNT, seed=COUNT, num_iterations=COUNT, settings=DICT, state=TEXT, folder=TEXT,
                      estimated_seconds=MAYBE, estimated_disk_bytes=MAYBE),
    },
    "compare": keys(
        baseline=TEXT, metric=TEXT, notes=TEXTS,
        methods={
            "type": "array",
            "minItems": 1,
            "items": keys(name=TEXT, mean_difference=NUMBER, ci_low=MAYBE, ci_high=MAYBE, p_holm=SHARE, patients=COUNT,
                          verdict={"enum": ["helped", "no evidence", "hurt"]}, exploratory=FLAG, structures=DICT,
                          metrics=DICT),
        },
    ),
    "find_best": keys(dataset=TEXT, models=TEXTS, folds=TEXTS, postprocessing=DICT, dice=SHARE, cases=COUNT,
                      candidates={"type": "array", "minItems": 1}, notes=TEXTS, file=TEXT),
    "pseudo_quality": keys(folder=TEXT, scores=TEXT, decisions=DICT, members=TEXT, names=TEXTS, calibration=TEXT,
                           correlation=MAYBE, notes=TEXTS),
    "suggest": keys(folder=TEXT, dataset=TEXT, cases=TEXTS, images=TEXTS, masks=TEXTS, strategy=TEXT, examined=COUNT,
                    notes=TEXTS),
    "accept": keys(dataset=TEXT, accepted=TEXTS, replaced=TEXTS, already=TEXTS, unchanged=TEXTS, missing=TEXTS,
                   labelled=COUNT, unlabelled=COUNT),
    "export": keys(file=TEXT, model=TEXT, folds=TEXTS, bytes=COUNT, sha256=TEXT, removed=TEXTS,
                   onnx={"type": ["string", "null"]}, onnx_difference=MAYBE),
    "install": keys(models=TEXTS, kind={"enum": ["nnssl", "nnU-Net"]}, folds=TEXTS, notes=TEXTS),
    "report": keys(index=TEXT, cases=TEXTS, size_bytes=COUNT, comparison={"type": ["object", "null"]}),
    "look": keys(file=TEXT, cases=TEXTS, left_out=TEXTS),
    "runs": {
        "type": "array",
        "minItems": 1,
        "items": keys(folder=TEXT, dataset=TEXT, trainer=TEXT, plans=TEXT, configuration=TEXT, fold=TEXT, tag=TEXT,
                      state=TEXT, iteration=COUNT, num_iterations=COUNT, validation_dice=SHARE,
                      postprocessed_dice=SHARE, seconds=NUMBER, command=TEXT),
    },
    "clean": keys(frees_bytes=COUNT, removed=FLAG, in_use=TEXTS, notes=TEXTS, left_overs={
        "type": "array", "minItems": 1, "items": keys(dataset=TEXT, paths=TEXTS, why=TEXT, bytes=COUNT),
    }),
    "methods": {"type": "array", "items": keys(**{"name": TEXT, "class": TEXT, "paper": TEXT, "needs": TEXTS})},
    "run": keys(folder=TEXT, dataset=TEXT, commands=TEXTS, masks=DICT, models=DICT, answer=TEXT, verdict=TEXT,
                comparison=DICT, notes=TEXTS, report={"type": ["string", "null"]}),
    "convert": keys(folder=TEXT, converter=TEXT, dataset=TEXT, dry_run=FLAG, labelled=COUNT, unlabelled=COUNT,
                    test=COUNT, converted=COUNT, kept=COUNT, notes=TEXTS, warnings=TEXTS, skipped=DICT, left_out=TEXTS,
                    licence=TEXT, citation=TEXT),
}  # fmt: skip
PLAN_TIFF = "-d 911 -c 3d_fullres -hardware cpu -np 1 -npfp 2"
ERROR = keys(error=TEXT, where=TEXT, why=TEXT, run=TEXT, exit_code=COUNT)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what each command prints with `--json` on the way from a phantom to a scored prediction."""
    root = tmp_path_factory.mktemp("road")
    patch = pytest.MonkeyPatch()
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / variable).mkdir()
        patch.setenv(variable, str(root / variable))
    raw, found = root / "nnUNet_raw" / "Dataset909_Phantom", {}
    steps = {
        "phantom": "-d 909 -labelled 3 -unlabelled 2 -test 1 -shape 16 20 20",
        "plan_and_preprocess": "-d 909 -c 3d_fullres -hardware cpu -np 1",
        "train": "909 3d_fullres 0 -tr SupervisedTrainer -num_iterations 1 -device cpu",
        "predict": f"-i {raw}/imagesTs -o {root}/masks -device cpu --disable_tta",
        "pseudo_label": f"-d 909 -o {root}/pseudo -device cpu --disable_tta",
        "evaluate": f"{raw}/labelsTs {root}/masks -np 1",
        "sweep": f"-d 909 -c 3d_fullres -tr SupervisedTrainer -seeds 0 1 -num_iterations 1 -o {root}/study --dry_run",
        "compare": f"{root}/masks {root}/others -baseline {root}/masks",
        "find_best": "-d 909",
        "pseudo_quality": f"-m SupervisedTrainer__nnUNetPlans__3d_fullres@iterations1 -i {raw}/imagesUn "
        f"-o {root}/quality -device cpu",
        "suggest": f"-d 909 -n 1 -o {root}/next -device cpu --disable_tta",
        "accept": f"{root}/next",
        "export": f"SupervisedTrainer__nnUNetPlans__3d_fullres@iterations1 -o {root}/model.zip",
        "install": f"{root}/model.zip --overwrite",
        "report": f"{root}/masks {root}/others -baseline {root}/masks -o {root}/report -cases 1",
        "look": f"{raw}/imagesTs {raw}/labelsTs {root}/masks -o {root}/look.png",
        "runs": "-d 909",
        "clean": "-d 909",
        "methods": "",
        "convert": f"folder -i {raw} -d 910 -images imagesTr/*_0000.nii.gz -labels labelsTr/*.nii.gz --dry_run -np 1",
    }
    steps["run"] = f"-images {raw}/imagesTr -labels {raw}/labelsTr -unlabelled {raw}/imagesUn -o {root}/own"
    patch.setattr("nnssl.journey.api.measure", lambda *_: {})
    patch.setattr("sys.stdin", io.StringIO("n\n"))  # the way to the end takes minutes
    for command, words in steps.items():
        if command == "compare":
            shutil.copytree(root / "masks", root / "others")
        if command == "clean":
            cases = root / "nnUNet_preprocessed" / "Dataset909_Phantom" / "nnUNetPlans_3d_fullres"
            shutil.copytree(cases, cases.with_name("old"))
        found[command] = _answer(command, words.split())
    patch.undo()
    return found


def _answer(command: str, words: list[str]) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        code = import_module(f"nnssl.cli.{command}").main([*words, "--json"])
    assert code == 0, text.getvalue()
    return text.getvalue()


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("command", SCHEMAS)
def test_results_are_one_strict_json_value(command: str, answers: dict[str, str]) -> None:
    validate(strict(answers[command]), SCHEMAS[command])
    assert "None" not in answers[command].replace("NoneType", "")
    assert "PosixPath" not in answers[command]


def test_every_command_has_a_schema() -> None:
    folder = Path(import_module("nnssl.cli").__file__).parent
    commands = {file.stem for file in folder.glob("*.py")} - {"__init__", "help_groups", "runtime"}
    assert commands == set(SCHEMAS)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", "999 3d_fullres 0"),
        ("plan_and_preprocess", "-d 999"),
        ("predict", "-i nowhere -o masks"),
        ("pseudo_label", "-d 999 -o masks"),
        ("evaluate", "a b"),
        ("compare", "-d 999"),
        ("find_best", "-d 999"),
        ("pseudo_quality", "-m nowhere -i a -o b"),
        ("suggest", "-d 999 -o b"),
        ("accept", "nowhere"),
        ("export", "nowhere -o model.zip"),
        ("install", "nowhere.zip"),
        ("report", "-d 999 -o report"),
        ("look", "nowhere"),
        ("runs", ""),
        ("clean", ""),
        ("convert", "folder -i nowhere -d 910"),
        ("run", "-images nowhere -labels a -unlabelled b -o c"),
    ],
)
def test_errors_are_one_strict_json_value(command: str, words: str, monkeypatch, capsys) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    code = import_module(f"nnssl.cli.{command}").main([*words.split(), "--json"])
    answer = strict(capsys.readouterr().out)
    validate(answer, ERROR)
    assert answer["exit_code"] == code > 0


def test_what_nnunet_prints_about_tiff_files_is_kept_away(tmp_path: Path, monkeypatch, capfd) -> None:
    """Its reader prints that a file with the voxel size is missing, in this process and in workers."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    raw = tmp_path / "nnUNet_raw" / "Dataset911_Tiff"
    for number, case in enumerate(("a", "b", "c")):
        label = np.zeros((20, 22, 24), np.uint8)
        label[5:12, 6:14, 5 + number : 15 + number] = 1
        for folder, name, array in (("imagesTr", f"{case}_0000", label * 90 + number), ("labelsTr", case, label)):
            (raw / folder).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(raw / folder / f"{name}.tif", array)
    content = {"channel_names": {"0": "EM"}, "labels": {"background": 0, "box": 1}, "numTraining": 3}
    (raw / "dataset.json").write_text(json.dumps(content | {"file_ending": ".tif"}))
    with few_samples_and_steps():
        assert import_module("nnssl.cli.plan_and_preprocess").main([*PLAN_TIFF.split(), "--json"]) == 0
    captured = capfd.readouterr()
    validate(strict(captured.out), SCHEMAS["plan_and_preprocess"])
    assert "no spacing file found" in captured.err
    words = [str(raw / "labelsTr"), str(raw / "labelsTr"), "-djfile", str(raw / "dataset.json"), "-np", "1", "--json"]
    assert import_module("nnssl.cli.evaluate").main(words) == 0
    validate(strict(capfd.readouterr().out), SCHEMAS["evaluate"])
