"""The table of bad input: a command, how the world is broken before it, exit code, and words of the message."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.cli.bad_input_world import (
    DATASET,
    EVALUATE,
    MODEL,
    PHANTOM,
    PLAN,
    PREDICT,
    RESUME,
    TRAIN,
    World,
    cut,
    edit_image,
    edit_json,
)

TRAIN_TEACHER = TRAIN.replace("Supervised", "MeanTeacher")


def unspoilt(world: World) -> None:
    """Leave the world as it is: the command line is what is wrong."""


@dataclass(frozen=True)
class BadInput:
    """One kind of bad input.

    Attributes:
        name: name of the test.
        command: command line; {root} stands for the world's folder.
        code: exit code.
        words: what the message must contain; {root} as above.
        spoil: what is done to the world before.
    """

    name: str
    command: str
    code: int
    words: tuple[str, ...]
    spoil: Callable[[World], object] = unspoilt


def fresh(spoil: Callable[[World], object]) -> Callable[[World], None]:
    """Return `spoil` on a data set that was never planned."""

    def both(world: World) -> None:
        shutil.rmtree(world.preprocessed)
        spoil(world)

    return both


def put(file: str, value: float, place: tuple[int, ...] = (3, 4, 5)) -> Callable[[World], None]:
    """Return a change that sets one voxel of a raw file."""

    def with_value(voxels: np.ndarray) -> np.ndarray:
        voxels = voxels.astype(np.float32)
        voxels[place] = value
        return voxels

    return lambda world: edit_image(world.raw / file, with_value)


def dataset_json(**values: Any) -> Callable[[World], None]:
    """Return a change of keys in the raw dataset.json; None removes a key."""

    def change(content: dict[str, Any]) -> None:
        content.update(values)
        for name in [name for name, value in values.items() if value is None]:
            del content[name]

    return lambda world: edit_json(world.raw / "dataset.json", change)


def remove(*files: str) -> Callable[[World], None]:
    """Return a change that deletes files or folders, given from the root."""

    def change(world: World) -> None:
        for file in files:
            path = world.root / file.format(dataset=DATASET)
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def write(file: str, content: str | bytes) -> Callable[[World], None]:
    """Return a change that writes a file, given from the root."""

    def change(world: World) -> None:
        path = world.root / file.format(dataset=DATASET)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def unset(variable: str) -> Callable[[World], None]:
    return lambda world: world.patch.delenv(variable)


def point(variable: str, place: str) -> Callable[[World], None]:
    """Return a change that points a variable to a place below the root; `file` there is a regular file."""

    def change(world: World) -> None:
        (world.root / "file").touch()
        world.patch.setenv(variable, str(world.root / place))

    return change


def export(variable: str, value: str) -> Callable[[World], None]:
    return lambda world: world.patch.setenv(variable, value)


def copy_case(source: str, target: str) -> Callable[[World], None]:
    """Return a change that copies both channels of a raw case, from and to `folder/name`."""

    def change(world: World) -> None:
        for channel in ("0000", "0001"):
            shutil.copy(world.raw / f"{source}_{channel}.nii.gz", world.raw / f"{target}_{channel}.nii.gz")

    return change


RAW, PRE, RES = "nnUNet_raw/{dataset}", "nnUNet_preprocessed/{dataset}", "nnUNet_results/{dataset}"
DATA = f"{PRE}/nnUNetPlans_3d_fullres"
FOLD = f"{RES}/SupervisedTrainer__nnUNetPlans__3d_fullres/fold_0"


def in_raw(file: str, change: Callable[[Path], object]) -> Callable[[World], object]:
    return lambda world: change(world.raw / file)


def not_json(file: str) -> Callable[[World], None]:
    return write(file, "{")


def unfinished(world: World) -> None:
    """Leave the trained run with two truncated checkpoints of a session, as a full disk might."""
    final = world.fold / "checkpoint_final.pth"
    cut(final)
    shutil.copy(final, final.with_name("checkpoint_previous.pth"))
    final.rename(final.with_name("checkpoint_latest.pth"))


def without_unlabelled(world: World) -> None:
    """Remove the unlabelled scans from the folds."""

    def change(folds: list[dict[str, Any]]) -> None:
        for fold in folds:
            fold["unlabelled"] = []

    edit_json(world.preprocessed / "splits_final.json", change)


def other_spacing(plans: Path) -> None:
    edit_json(plans, lambda content: content["configurations"]["3d_fullres"].update(spacing=[2.0, 1.0, 1.0]))


def stock_checkpoint(world: World) -> None:
    import torch

    path = world.fold / "checkpoint_final.pth"
    content = torch.load(path, weights_only=True)
    del content["nnssl_semi"]
    torch.save(content, path)


class Harm:
    """What unpickling a harmful checkpoint would call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("harm was done",))


def harmful_checkpoint(world: World) -> None:
    import torch

    torch.save({"network_weights": Harm()}, world.fold / "checkpoint_final.pth")


def other_network(path: Path) -> None:
    import torch

    torch.save({"network_weights": {"some.weight": torch.zeros(3)}, "nnssl_semi": {}}, path)


def edit_checkpoint(world: World, change: Callable[[dict[str, Any]], Any]) -> None:
    import torch

    path = world.fold / "checkpoint_final.pth"
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def two_models(world: World) -> None:
    shutil.copytree(world.model, world.model.with_name("OtherTrainer__nnUNetPlans__3d_fullres"))


def in_scan(change: Callable[[np.ndarray], Any] | None = None, spacing: float = 1.0) -> Callable[[World], None]:
    return lambda world: edit_image(world.scans / "test_0_0001.nii.gz", change, spacing)


def with_nan(voxels: np.ndarray) -> None:
    voxels[3, 4, 5] = np.nan


RAW_DATA = [
    ("missing channel", remove(f"{RAW}/imagesTr/case_1_0001.nii.gz"), ("case_1", "1 channel", "names 2")),
    ("missing first channel", remove(f"{RAW}/imagesUn/un_0_0000.nii.gz"), ("un_0", "0001", "count up from 0000")),
    ("unlabelled scan with a third channel",
     in_raw("imagesUn", lambda f: shutil.copy(f / "un_0_0000.nii.gz", f / "un_1_0002.nii.gz")),
     ("un_1", "3 channel", "names 2")),
    ("test scan with one channel", remove(f"{RAW}/imagesTs/test_0_0001.nii.gz"), ("test_0", "1 channel")),
    ("wrong spacing of a channel", in_raw("imagesTr/case_0_0001.nii.gz", lambda f: edit_image(f, spacing=2.0)),
     ("case_0_0001.nii.gz", "1 x 1 x 2 mm", "1 x 1 x 1 mm", "tolerance")),
    ("wrong spacing of a label", in_raw("labelsTr/case_2.nii.gz", lambda f: edit_image(f, spacing=1.5)),
     ("case_2.nii.gz", "1.5 mm", "tolerance")),
    ("wrong shape of a label", in_raw("labelsTr/case_2.nii.gz", lambda f: edit_image(f, lambda v: v[:15])),
     ("case_2.nii.gz", "15", "16 x 16 x 16")),
    ("NaN", put("imagesTr/case_0_0000.nii.gz", np.nan), ("case_0_0000.nii.gz", "NaN", "1 of 4096")),
    ("infinity in an unlabelled scan", put("imagesUn/un_1_0001.nii.gz", np.inf), ("un_1_0001.nii.gz", "infinite")),
    ("empty imagesUn", in_raw("imagesUn", lambda f: [x.unlink() for x in f.iterdir()]),
     ("imagesUn", "remove the folder")),
    ("label 7 of 3", put("labelsTr/case_1.nii.gz", 7), ("case_1.nii.gz", "7", "0 to 3")),
    ("label 1.5", put("labelsTr/case_1.nii.gz", 1.5), ("case_1.nii.gz", "not integers 1.5")),
    ("negative label", put("labelsTr/case_1.nii.gz", -1), ("case_1.nii.gz", "-1")),
    ("NaN in a label", put("labelsTr/case_1.nii.gz", np.nan), ("case_1.nii.gz", "NaN")),
    ("missing label", remove(f"{RAW}/labelsTr/case_3.nii.gz"), ("case_3.nii.gz", "does not exist")),
    ("labels without foreground", in_raw("labelsTr", lambda f: [edit_image(x, np.zeros_like) for x in f.iterdir()]),
     ("no labelled case has foreground",)),
    ("corrupt gzip", in_raw("imagesUn/un_0_0000.nii.gz", lambda f: f.write_bytes(f.read_bytes()[:2000] + b"x" * 3000)),
     ("un_0_0000.nii.gz", "cannot be read")),
    ("truncated gzip", in_raw("imagesTr/case_0_0000.nii.gz", cut), ("case_0_0000.nii.gz", "end too early")),
    ("truncated label", in_raw("labelsTr/case_0.nii.gz", cut), ("case_0.nii.gz", "end too early")),
    ("empty file", write(f"{RAW}/imagesUn/un_1_0001.nii.gz", ""), ("un_1_0001.nii.gz", "cannot be read")),
    ("text instead of an image", write(f"{RAW}/imagesTr/case_0_0000.nii.gz", "scan"), ("case_0_0000.nii.gz",)),
    ("dangling link", in_raw("imagesUn", lambda f: (f / "un_2_0000.nii.gz").symlink_to(f / "gone")),
     ("un_2_0000.nii.gz",)),
    ("no labelled case", remove(f"{RAW}/imagesTr", f"{RAW}/labelsTr"), ("no labelled cases", "imagesTr")),
    ("image of another format", in_raw("imagesUn", lambda f: shutil.copy(f / "un_0_0000.nii.gz", f / "un_2_0000.nii")),
     ("un_2_0000.nii", "do not end with .nii.gz")),
    ("file name without channel", in_raw("imagesUn", lambda f: (f / "un_0_0000.nii.gz").rename(f / "scan.nii.gz")),
     ("scan.nii.gz", "CASE_0000")),
    ("same scan labelled and unlabelled", copy_case("imagesTr/case_0", "imagesUn/un_0"),
     ("same voxels", "case_0", "un_0")),
    ("one name in two folders", copy_case("imagesTr/case_0", "imagesUn/case_0"), ("case_0 stands in",)),
    ("same scan tested", copy_case("imagesUn/un_0", "imagesTs/test_0"), ("same voxels", "un_0", "test_0")),
    ("patient trained on and tested", dataset_json(cases={"case_0": {"patient": "p"}, "test_0": {"patient": "p"}}),
     ("patient p",)),
    ("dataset.json missing", remove(f"{RAW}/dataset.json"), ("dataset.json", "missing")),
    ("dataset.json not JSON", write(f"{RAW}/dataset.json", "{labels:"), ("dataset.json", "not valid JSON")),
    ("dataset.json not text", write(f"{RAW}/dataset.json", b"\xff\xfe\x00"), ("dataset.json", "not valid JSON")),
    ("dataset.json a list", write(f"{RAW}/dataset.json", "[]"), ("dataset.json", "not a JSON object")),
    ("dataset.json without labels", dataset_json(labels=None), ("dataset.json", "missing: labels")),
    ("dataset.json without channels", dataset_json(channel_names=None), ("dataset.json", "channel_names")),
    ("dataset.json without file ending", dataset_json(file_ending=None), ("dataset.json", "file_ending")),
    ("file ending that is a number", dataset_json(file_ending=3), ("dataset.json",)),
    ("unknown file ending", dataset_json(file_ending=".dcm"), (".dcm",)),
    ("labels turned round", dataset_json(labels={"0": "background", "1": "core"}), ("turn it round",)),
    ("gap in the labels", dataset_json(labels={"background": 0, "core": 1, "rim": 3}), ("consecutive",)),
    ("no foreground label", dataset_json(labels={"background": 0}), ("dataset.json",)),
    ("wrong numTraining", dataset_json(numTraining=9), ("numTraining is 9", "4 labelled")),
    ("splits with an unknown case", write(f"{RAW}/splits_final.json", '[{"train": ["case_9"], "val": ["case_0"]}]'),
     ("case_9", "splits_final.json")),
    ("splits that are no list", write(f"{RAW}/splits_final.json", '{"train": []}'),
     ("splits_final.json", "list of folds")),
    ("splits of something else", write(f"{RAW}/splits_final.json", '[{"train": [1], "val": [{}]}]'),
     ("splits_final.json",)),
    ("splits that are text", write(f"{RAW}/splits_final.json", '[{"train": "case_0", "val": "case_1"}]'),
     ("splits_final.json",)),
    ("case in train and val", write(f"{RAW}/splits_final.json", '[{"train": ["case_0", "case_1"], "val": ["case_0"]}]'),
     ("fold 0", "case_0")),
]  # fmt: skip

PLAN_OPTIONS = [
    BadInput("plan: no data set with this id", PLAN.replace("906", "5"), 2, ("no data set '5'", DATASET)),
    BadInput("plan: no data set with this name", PLAN.replace("906", "Dataset906_Other"), 2, (DATASET,)),
    BadInput("plan: two data sets with one id", PLAN, 2, ("several data sets", "Dataset906_Twin"),
             lambda w: (w.raw.parent / "Dataset906_Twin").mkdir()),
    BadInput("plan: unknown trainer", f"{PLAN} -tr MeanTecherTrainer", 2,
             ("MeanTecherTrainer", "-tr MeanTeacherTrainer")),
    BadInput("plan: unknown planner", f"{PLAN} -pl NoPlanner".replace("-budget cpu ", ""), 2,
             ("NoPlanner", "-pl ExperimentPlanner")),
    BadInput("plan: unknown extractor", f"{PLAN} -fpe NoExtractor", 2, ("NoExtractor",), fresh(unspoilt)),
    BadInput("plan: unknown preprocessor", f"{PLAN} -preprocessor_name NoPreprocessor", 2, ("NoPreprocessor",),
             fresh(unspoilt)),
    BadInput("plan: unknown budget", PLAN.replace("cpu", "gpu"), 2, ("-budget cpu",)),
    BadInput("plan: unknown configuration", f"{PLAN} -c 3d_fulres", 2, ("3d_fulres", "3d_fullres"), fresh(unspoilt)),
    BadInput("plan: configuration that is not needed", f"{PLAN} -c 3d_lowres", 2, ("3d_lowres", "3d_fullres")),
    BadInput("plan: fold that does not exist", f"{PLAN} -labelled 2 -f 9", 2, ("fold 9", "0 to 3")),
    BadInput("plan: fold that is a word", f"{PLAN} -f first", 2, ("first", "number or 'all'")),
    BadInput("plan: label budget of none", f"{PLAN} -labelled 0", 2, ("-labelled 0", "10%")),
    BadInput("plan: label budget that is a word", f"{PLAN} -labelled few", 2, ("few",)),
    BadInput("plan: label budget above 100 %", f"{PLAN} -labelled 101%", 2, ("101%",)),
    BadInput("plan: label budget larger than the fold", f"{PLAN} -labelled 99", 3, ("99", "3"), fresh(unspoilt)),
    BadInput("plan: setting without domains", f"{PLAN} -setting umda:A:B", 3, ("no domains", '"domain": "A"'),
             fresh(unspoilt)),
    BadInput("plan: unknown domain", f"{PLAN} -setting mdg:B", 2, ("no domain 'B'", "domains in dataset.json: A"),
             fresh(dataset_json(cases={"case_00": {"domain": "A"}}))),
    BadInput("plan: setting without its arrow", f"{PLAN} -setting umda:A-", 2, ("redirection", "umda:A:TARGET")),
    BadInput("plan: unknown setting", f"{PLAN} -setting ssl:A", 2, ("unknown setting", "mdg:TARGET")),
    BadInput("plan: setting with a fold", f"{PLAN} -setting mdg:A -f 1", 2, ("one fold",)),
    BadInput("plan: unknown normalisation", f"{PLAN} -normalisation zscore", 2, ("shared, nnunet",)),
    BadInput("plan: no processes", f"{PLAN} -np 0", 2, ("-np",)),
    BadInput("plan: too many numbers of processes", f"{PLAN} -np 1 2", 2, ("2 numbers",)),
    BadInput("plan: no processes for the check", f"{PLAN} -npfp 0", 2, ("-npfp",)),
    BadInput("plan: number that is a word", f"{PLAN} -np many", 2, ("-np", "many")),
    BadInput("plan: too little memory", f"{PLAN} -gpu_memory_target 0.1".replace("-budget cpu ", ""), 2,
             ("too little", "-gpu_memory_target")),
    BadInput("plan: memory beside a fixed plan", f"{PLAN} -gpu_memory_target 8", 2, ("-budget cpu",)),
    BadInput("plan: spacing of two numbers", f"{PLAN} -overwrite_target_spacing 1 1", 2, ("three numbers",)),
    BadInput("plan: spacing of zero", f"{PLAN} -overwrite_target_spacing 1 1 0", 2, ("above 0",)),
    BadInput("plan: plans name that is a path", f"{PLAN} -overwrite_plans_name ../x", 2, ("../x",)),
    BadInput("plan: unknown option", f"{PLAN} --fast", 2, ("--fast",)),
    BadInput("plan: shortened option", f"{PLAN} --verify_d", 2, ("--verify_d",)),
    BadInput("plan: no data set given", "nnssl_plan_and_preprocess", 2, ("-d",)),
    BadInput("plan: nnUNet_raw unset", PLAN, 4, ("export nnUNet_raw=",), unset("nnUNet_raw")),
    BadInput("plan: nnUNet_preprocessed unset", PLAN, 4, ("export nnUNet_preprocessed=",),
             unset("nnUNet_preprocessed")),
    BadInput("plan: nnUNet_raw empty", PLAN, 4, ("export nnUNet_raw=",), export("nnUNet_raw", "")),
    BadInput("plan: nnUNet_raw not there", PLAN, 4, ("{root}/nowhere", "nnUNet_raw"), point("nnUNet_raw", "nowhere")),
    BadInput("plan: nnUNet_raw a file", PLAN, 4, ("{root}/file", "nnUNet_raw"), point("nnUNet_raw", "file")),
    BadInput("plan: nnUNet_preprocessed below a file", PLAN, 4, ("{root}/file is a file", "export nnUNet_preprocessed"),
             point("nnUNet_preprocessed", "file/below")),
    BadInput("plan: preprocessed folder is a file", PLAN, 4, ("nnUNet_preprocessed",),
             lambda w: (shutil.rmtree(w.preprocessed), w.preprocessed.touch())),
    BadInput("plan: number of workers that is a word", PLAN.replace(" -np 1 -npfp 1", ""), 4,
             ("nnUNet_def_n_proc", "many"), export("nnUNet_def_n_proc", "many")),
    BadInput("plan: other folds than before", PLAN, 3, ("splits_final.json", "delete"),
             write(f"{RAW}/splits_final.json", '[{"train": ["case_0"], "val": ["case_1"]}]')),
    BadInput("plan: plans that are not JSON", PLAN, 3, ("nnUNetPlans.json", "delete"),
             write(f"{PRE}/nnUNetPlans.json", "{")),
    BadInput("plan: fingerprint that is not JSON", PLAN, 3, ("dataset_fingerprint",),
             write(f"{PRE}/dataset_fingerprint.json", "{")),
    BadInput("plan: manifest that is not JSON", PLAN, 3, ("manifest", "delete"), write(f"{DATA}.manifest.json", "[")),
    BadInput("plan: manifest of something else", PLAN, 3, ("manifest", "delete"),
             write(f"{DATA}.manifest.json", "[1]")),
]  # fmt: skip

TRAIN_CASES = [
    BadInput("train: no such data set", TRAIN.replace("906", "5"), 2, ("no data set '5'", DATASET)),
    BadInput("train: data set that is not planned", TRAIN, 3, ("nnssl_plan_and_preprocess -d",),
             lambda w: (shutil.rmtree(w.preprocessed), w.preprocessed.mkdir())),
    BadInput("train: unknown trainer", f"{TRAIN} -tr MeanTeacher", 2, ("MeanTeacherTrainer", "SupervisedTrainer")),
    BadInput("train: unknown setting", f"{TRAIN_TEACHER} --set ema_decy=0.9", 2, ("ema_decy", "--set ema_decay=0.9")),
    BadInput("train: setting of another method", f"{TRAIN} --set ema_decay=0.9", 2, ("ema_decay", "learning_rate")),
    BadInput("train: setting out of range", f"{TRAIN_TEACHER} --set ema_decay=1.5", 2, ("ema_decay", "0 to 1")),
    BadInput("train: unknown network", f"{TRAIN} --set network=vnt", 2,
             ("network=vnt is no network", "mamba_unet", "--set network=vnet")),
    BadInput("train: masks for a method that makes its own", f"{TRAIN_TEACHER} -pseudo_labels {{root}}/masks", 2,
             ("-tr SelfTrainingTrainer",)),
    BadInput("train: setting that is a word", f"{TRAIN_TEACHER} --set ema_decay=high", 2, ("ema_decay", "number")),
    BadInput("train: setting that is not a number", f"{TRAIN_TEACHER} --set ema_decay=nan", 2, ("ema_decay",)),
    BadInput("train: setting without a value", f"{TRAIN_TEACHER} --set ema_decay", 2, ("name=value",)),
    BadInput("train: fold that does not exist", TRAIN.replace(" 0 ", " 9 "), 2, ("fold 9", "0 to 3")),
    BadInput("train: fold that is a word", TRAIN.replace(" 0 ", " first "), 2, ("first", "'all'")),
    BadInput("train: fold below zero", TRAIN.replace(" 0 ", " -1 "), 2, ("-1",)),
    BadInput("train: unknown configuration", TRAIN.replace("3d_fullres", "4d"), 2, ("4d", "3d_fullres")),
    BadInput("train: configuration without data", TRAIN.replace("3d_fullres", "2d"), 3,
             ("nnssl_plan_and_preprocess -d", "-c 2d")),
    BadInput("train: unknown plans", f"{TRAIN} -p OtherPlans", 3, ("OtherPlans.json", "nnssl_plan_and_preprocess")),
    BadInput("train: no iterations", f"{TRAIN} -num_iterations 0", 2, ("-num_iterations", "at least 1")),
    BadInput("train: half an iteration", f"{TRAIN} -num_iterations 0.5", 2, ("-num_iterations", "0.5")),
    BadInput("train: seed below zero", f"{TRAIN} -seed -1", 2, ("-seed",)),
    BadInput("train: label budget of none", f"{TRAIN} -labelled 0", 2, ("-labelled 0",)),
    BadInput("train: label budget that is not planned", f"{TRAIN} -labelled 2", 3,
             ("nnssl_plan_and_preprocess", "-labelled 2")),
    BadInput("train: label budget larger than the fold", f"{TRAIN} -labelled 99", 3, ("99", "3")),
    BadInput("train: no CUDA device", TRAIN.replace("cpu", "cuda"), 4, ("cuda", "-device cpu"),
             lambda w: w.patch.setattr("torch.cuda.device_count", lambda: 0)),
    BadInput("train: no MPS device", TRAIN.replace("cpu", "mps"), 4, ("mps", "-device cpu"),
             lambda w: w.patch.setattr("torch.backends.mps.is_available", lambda: False)),
    BadInput("train: no processes", f"{TRAIN} -num_gpus 0", 2, ("-num_gpus",)),
    BadInput("train: unknown device", TRAIN.replace("cpu", "tpu"), 2, ("tpu", "cuda")),
    BadInput("train: a run of this name exists", RESUME, 2, ("--overwrite", "-tag")),
    BadInput("train: continue and validate", f"{RESUME} --c --val", 2, ("--c", "--val")),
    BadInput("train: best weights that are not kept", f"{TRAIN} --val_best --disable_checkpointing", 2,
             ("--val_best",)),
    BadInput("train: nothing to continue", f"{RESUME} --c", 4, ("no checkpoint", "without --c"), remove(FOLD)),
    BadInput("train: nothing to validate", f"{RESUME} --val", 4, ("not finished",), remove(FOLD)),
    BadInput("train: no best weights to validate", f"{RESUME} --val --val_best", 4, ("checkpoint_best.pth",),
             remove(f"{FOLD}/checkpoint_best.pth")),
    BadInput("train: continue with another seed", f"{RESUME} --c -seed 3", 2, ("seed: stored 0, asked 3",)),
    BadInput("train: continue with another length", f"{RESUME} --c -num_iterations 1", 2, ("stored 2, asked 1",)),
    BadInput("train: truncated checkpoint", f"{RESUME} --c", 4, ("checkpoint_final.pth", "truncated"),
             lambda w: cut(w.fold / "checkpoint_final.pth")),
    BadInput("train: two truncated checkpoints", f"{RESUME} --c", 4, ("checkpoint_previous.pth", "truncated"),
             unfinished),
    BadInput("train: empty checkpoint", f"{RESUME} --val", 4, ("checkpoint_final.pth",),
             write(f"{FOLD}/checkpoint_final.pth", "")),
    BadInput("train: checkpoint of stock nnU-Net", f"{RESUME} --c", 4, ("not written by nnssl",),
             stock_checkpoint),
    BadInput("train: checkpoint with code in it", f"{RESUME} --c", 4, ("checkpoint_final.pth",),
             harmful_checkpoint),
    BadInput("train: pretrained weights missing", f"{TRAIN} -pretrained_weights {{root}}/gone.pth", 4,
             ("{root}/gone.pth",)),
    BadInput("train: pretrained weights truncated", f"{TRAIN} -pretrained_weights {{root}}/cut.pth", 4,
             ("{root}/cut.pth", "truncated"), write("cut.pth", "PK")),
    BadInput("train: pretrained weights of another network", f"{TRAIN} -pretrained_weights {{root}}/other.pth", 4,
             ("{root}/other.pth",), lambda w: other_network(w.root / "other.pth")),
    BadInput("train: pretrained weights while continuing", f"{RESUME} --c -pretrained_weights {{root}}/gone.pth", 2,
             ("-pretrained_weights",)),
    BadInput("train: nnUNet_preprocessed unset", TRAIN, 4, ("export nnUNet_preprocessed=",),
             unset("nnUNet_preprocessed")),
    BadInput("train: nnUNet_preprocessed not there", TRAIN, 4, ("{root}/nowhere",),
             point("nnUNet_preprocessed", "nowhere")),
    BadInput("train: nnUNet_results unset", TRAIN, 4, ("export nnUNet_results=",), unset("nnUNet_results")),
    BadInput("train: nnUNet_results below a file", TRAIN, 4, ("{root}/file is a file",),
             point("nnUNet_results", "file/below")),
    BadInput("train: nnUNet_results a file", TRAIN, 4, ("{root}/file is a file",), point("nnUNet_results", "file")),
    BadInput("train: results of the data set a file", TRAIN, 4, ("is a file",),
             lambda w: (shutil.rmtree(w.model.parent), w.model.parent.touch())),
    BadInput("train: number of workers that is a word", TRAIN, 4, ("nnUNet_n_proc_DA", "many"),
             export("nnUNet_n_proc_DA", "many")),
    BadInput("train: plans that are not JSON", TRAIN, 3, ("nnUNetPlans.json", "nnssl_plan_and_preprocess"),
             not_json(f"{PRE}/nnUNetPlans.json")),
    BadInput("train: plans of something else", TRAIN, 3, ("nnUNetPlans.json",), write(f"{PRE}/nnUNetPlans.json", "{}")),
    BadInput("train: folds missing", TRAIN, 3, ("splits_final.json", "nnssl_plan_and_preprocess"),
             remove(f"{PRE}/splits_final.json")),
    BadInput("train: folds that are not JSON", TRAIN, 3, ("splits_final.json", "nnssl_plan_and_preprocess"),
             not_json(f"{PRE}/splits_final.json")),
    BadInput("train: folds of something else", TRAIN, 3, ("splits_final.json",),
             write(f"{PRE}/splits_final.json", '{"train": 1}')),
    BadInput("train: dataset.json missing", TRAIN, 3, ("dataset.json", "nnssl_plan_and_preprocess"),
             remove(f"{PRE}/dataset.json")),
    BadInput("train: dataset.json of something else", TRAIN, 3, ("dataset.json",), write(f"{PRE}/dataset.json", "[]")),
    BadInput("train: labels changed since planning", TRAIN, 3, ("labels", "nnssl_plan_and_preprocess"),
             lambda w: edit_json(w.preprocessed / "dataset.json", lambda d: d["labels"].update(more=4))),
    BadInput("train: plans changed since preprocessing", TRAIN, 3, ("spacing", "nnssl_plan_and_preprocess"),
             lambda w: other_spacing(w.preprocessed / "nnUNetPlans.json")),
    BadInput("train: preprocessed case missing", TRAIN, 3, ("case_1", "nnssl_plan_and_preprocess"),
             remove(f"{DATA}/case_1.b2nd")),
    BadInput("train: preprocessed label missing", TRAIN, 3, ("case_1", "nnssl_plan_and_preprocess"),
             remove(f"{DATA}/case_1_seg.b2nd")),
    BadInput("train: preprocessed unlabelled case missing", TRAIN_TEACHER, 3, ("un_1", "nnssl_plan_and_preprocess"),
             remove(f"{DATA}_unlabelled/un_1.pkl")),
    BadInput("train: preprocessed case truncated", TRAIN, 3, ("case_", "nnssl_plan_and_preprocess"),
             lambda w: [cut(f) for f in w.cases.glob("*[0-9].b2nd")]),
    BadInput("train: preprocessed case that a worker finds truncated", TRAIN, 3, ("case_", "nnssl_plan_and_preprocess"),
             lambda w: (w.patch.setenv("nnUNet_n_proc_DA", "1"), [cut(f) for f in w.cases.glob("*[0-9].b2nd")])),
    BadInput("train: properties of a case truncated", TRAIN, 3, ("case_", "nnssl_plan_and_preprocess"),
             lambda w: [cut(f) for f in w.cases.glob("*.pkl")]),
    BadInput("train: preprocessed case empty", TRAIN, 3, ("case_", "nnssl_plan_and_preprocess"),
             lambda w: [cut(f, 0) for f in w.cases.glob("*.b2nd")]),
    BadInput("train: manifest missing", TRAIN, 3, ("manifest", "nnssl_plan_and_preprocess"),
             remove(f"{DATA}.manifest.json")),
    BadInput("train: manifest of something else", TRAIN, 3, ("manifest", "nnssl_plan_and_preprocess"),
             write(f"{DATA}.manifest.json", "[]")),
    BadInput("train: no unlabelled scans for Mean Teacher", TRAIN_TEACHER, 3,
             ("unlabelled", "imagesUn", "SupervisedTrainer"), without_unlabelled),
    BadInput("train: no arguments", "nnssl_train", 2, ("dataset_name_or_id",)),
]  # fmt: skip

PREDICT_CASES = [
    BadInput("predict: no folder of scans", PREDICT.replace("/scans", "/gone"), 3, ("{root}/gone",)),
    BadInput("predict: empty folder of scans", PREDICT, 3, ("{root}/scans", "CASE_0000"),
             lambda w: [f.unlink() for f in w.scans.iterdir()]),
    BadInput("predict: scan without channel number", PREDICT, 3, ("scan.nii.gz", "CASE_0000"),
             lambda w: (w.scans / "test_0_0000.nii.gz").rename(w.scans / "scan.nii.gz")),
    BadInput("predict: scan of another format", PREDICT, 3, ("test_1_0000.nrrd", ".nii.gz"),
             write("scans/test_1_0000.nrrd", "")),
    BadInput("predict: missing channel", PREDICT, 3, ("test_0", "1 channel", "names 2"),
             remove("scans/test_0_0001.nii.gz")),
    BadInput("predict: missing first channel", PREDICT, 3, ("test_0", "1 channel"), remove("scans/test_0_0000.nii.gz")),
    BadInput("predict: channels out of order", PREDICT, 3, ("test_0", "0000"),
             lambda w: (w.scans / "test_0_0000.nii.gz").rename(w.scans / "test_0_0002.nii.gz")),
    BadInput("predict: third channel", PREDICT, 3, ("test_0", "3 channel", "names 2"),
             lambda w: shutil.copy(w.scans / "test_0_0000.nii.gz", w.scans / "test_0_0002.nii.gz")),
    BadInput("predict: wrong spacing of a channel", PREDICT, 3, ("test_0_0001.nii.gz", "spacing"),
             in_scan(spacing=2.0)),
    BadInput("predict: wrong shape of a channel", PREDICT, 3, ("test_0_0001.nii.gz", "shape"),
             in_scan(lambda v: v[:9])),
    BadInput("predict: NaN", PREDICT, 3, ("test_0_0001.nii.gz", "NaN"), in_scan(with_nan)),
    BadInput("predict: corrupt gzip", PREDICT, 3, ("test_0_0000.nii.gz", "cannot be read"),
             lambda w: (w.scans / "test_0_0000.nii.gz").write_bytes(b"\x1f\x8b" + b"x" * 3000)),
    BadInput("predict: truncated gzip", PREDICT, 3, ("test_0_0001.nii.gz", "cannot be read"),
             lambda w: cut(w.scans / "test_0_0001.nii.gz")),
    BadInput("predict: empty file", PREDICT, 3, ("test_0_0001.nii.gz", "cannot be read"),
             write("scans/test_0_0001.nii.gz", "")),
    BadInput("predict: no model", PREDICT, 2, ("no trained model", "nnssl_train"), remove(RES)),
    BadInput("predict: two models", PREDICT, 2, ("choose one", "-tr OtherTrainer", "-tr SupervisedTrainer"),
             two_models),
    BadInput("predict: no model of that trainer", f"{PREDICT} -tr MeanTeacherTrainer", 2,
             ("no trained model fits", "-tr SupervisedTrainer")),
    BadInput("predict: no such data set", f"{PREDICT} -d 5", 2, ("no trained model fits", "-d Dataset906_Bad")),
    BadInput("predict: folder that holds no model", f"{PREDICT} -m {{root}}/labels", 3,
             ("{root}/labels", "plans.json")),
    BadInput("predict: fold folder as model", f"{PREDICT} -m {{root}}/{FOLD.format(dataset=DATASET)}", 3,
             ("not a model folder", "-f 0")),
    BadInput("predict: model folder missing", f"{PREDICT} -m {{root}}/gone", 3, ("{root}/gone",)),
    BadInput("predict: fold that does not exist", f"{PREDICT} -f 3", 2, ("fold 3", "-f 0")),
    BadInput("predict: no such checkpoint", f"{PREDICT} -chk checkpoint_lst.pth", 2,
             ("checkpoint_lst.pth", "checkpoint_final.pth")),
    BadInput("predict: training has not ended", PREDICT, 2, ("has not ended", "--c"),
             lambda w: (w.fold / "checkpoint_final.pth").rename(w.fold / "checkpoint_latest.pth")),
    BadInput("predict: truncated checkpoint", PREDICT, 4, ("checkpoint_final.pth", "truncated"),
             lambda w: cut(w.fold / "checkpoint_final.pth")),
    BadInput("predict: empty checkpoint", PREDICT, 4, ("checkpoint_final.pth",),
             write(f"{FOLD}/checkpoint_final.pth", "")),
    BadInput("predict: checkpoint that is text", PREDICT, 4, ("checkpoint_final.pth",),
             write(f"{FOLD}/checkpoint_final.pth", "weights")),
    BadInput("predict: checkpoint with code in it", PREDICT, 4, ("checkpoint_final.pth", "more than numbers"),
             harmful_checkpoint),
    BadInput("predict: checkpoint without weights", PREDICT, 4, ("checkpoint_final.pth", "network_weights"),
             lambda w: edit_checkpoint(w, lambda c: c.pop("network_weights"))),
    BadInput("predict: checkpoint of another network", PREDICT, 4, ("checkpoint_final.pth", "fit"),
             lambda w: edit_checkpoint(w, lambda c: c["network_weights"].popitem())),
    BadInput("predict: configuration that the plans lack", PREDICT, 4, ("checkpoint_final.pth", "4d"),
             lambda w: edit_checkpoint(w, lambda c: c["init_args"].update(configuration="4d"))),
    BadInput("predict: plans that are not JSON", PREDICT, 3, ("plans.json",),
             lambda w: (w.model / "plans.json").write_text("{")),
    BadInput("predict: plans of something else", PREDICT, 3, ("plans.json",),
             lambda w: (w.model / "plans.json").write_text("[]")),
    BadInput("predict: plans without content", PREDICT, 3, ("plans.json",),
             lambda w: (w.model / "plans.json").write_text("{}")),
    BadInput("predict: dataset.json that is not JSON", PREDICT, 3, ("dataset.json",),
             lambda w: (w.model / "dataset.json").write_text("{")),
    BadInput("predict: dataset.json without content", PREDICT, 3, ("dataset.json",),
             lambda w: (w.model / "dataset.json").write_text("{}")),
    BadInput("predict: nnUNet_results unset", PREDICT, 4, ("export nnUNet_results=",), unset("nnUNet_results")),
    BadInput("predict: output below a file", PREDICT.replace("/out", "/file/out"), 4, ("{root}/file is a file",),
             write("file", "")),
    BadInput("predict: output is a file", PREDICT.replace("/out", "/file"), 4, ("{root}/file is a file",),
             write("file", "")),
    BadInput("predict: output is the input", PREDICT.replace("/out", "/scans"), 2, ("{root}/scans", "-o")),
    BadInput("predict: step of zero", f"{PREDICT} -step_size 0", 2, ("-step_size",)),
    BadInput("predict: step that is not a number", f"{PREDICT} -step_size nan", 2, ("-step_size",)),
    BadInput("predict: part that does not exist", f"{PREDICT} -num_parts 2 -part_id 2", 2, ("-part_id",)),
    BadInput("predict: no parts", f"{PREDICT} -num_parts 0", 2, ("-num_parts",)),
    BadInput("predict: readers below zero", f"{PREDICT} -npp -1", 2, ("-npp",)),
    BadInput("predict: number of readers that is a word", PREDICT.replace("-npp 0", ""), 2, ("-npp", "many"),
             export("nnUNet_npp", "many")),
    BadInput("predict: no CUDA device", PREDICT.replace("cpu", "cuda"), 4, ("cuda", "-device cpu"),
             lambda w: w.patch.setattr("torch.cuda.is_available", lambda: False)),
    BadInput("predict: cascade", f"{PREDICT} -prev_stage_predictions {{root}}/masks", 2,
             ("cascades", "nnUNetv2_predict")),
    BadInput("predict: no input", "nnssl_predict -o {root}/out", 2, ("-i",)),
]  # fmt: skip

EVALUATE_CASES = [
    BadInput("evaluate: no references", EVALUATE.replace("/labels", "/gone"), 3, ("{root}/gone",)),
    BadInput("evaluate: no predictions", EVALUATE.replace("/masks", "/gone"), 3, ("{root}/gone",)),
    BadInput("evaluate: folder that is a file", EVALUATE.replace("/masks", "/file"), 3, ("{root}/file",),
             write("file", "")),
    BadInput("evaluate: empty folder", EVALUATE, 3, ("{root}/labels",),
             lambda w: [f.unlink() for f in w.labels.iterdir()]),
    BadInput("evaluate: prediction of another format", EVALUATE, 3, ("{root}/masks", "test_0.nii"),
             lambda w: (w.masks / "test_0.nii.gz").rename(w.masks / "test_0.nii")),
    BadInput("evaluate: missing prediction", EVALUATE, 3, ("1 of 2", "more", "--chill"),
             lambda w: shutil.copy(w.labels / "test_0.nii.gz", w.labels / "more.nii.gz")),
    BadInput("evaluate: other names", EVALUATE, 3, ("test_0", "other"),
             lambda w: (w.masks / "test_0.nii.gz").rename(w.masks / "other.nii.gz")),
    BadInput("evaluate: no dataset.json", EVALUATE, 2, ("-djfile", "-l 1 2 3"), remove("masks/dataset.json")),
    BadInput("evaluate: dataset.json not there", f"{EVALUATE} -djfile {{root}}/gone.json", 3, ("{root}/gone.json",)),
    BadInput("evaluate: dataset.json not JSON", EVALUATE, 3, ("dataset.json",), not_json("masks/dataset.json")),
    BadInput("evaluate: dataset.json without labels", EVALUATE, 3, ("dataset.json", "labels"),
             write("masks/dataset.json", "{}")),
    BadInput("evaluate: dataset.json with labels that are words", EVALUATE, 3, ("dataset.json", "whole numbers"),
             write("masks/dataset.json", '{"labels": {"a": "b"}}')),
    BadInput("evaluate: file ending that is a number", EVALUATE, 3, ("3",),
             write("masks/dataset.json", '{"labels": {"background": 0, "a": 1}, "file_ending": 3}')),
    BadInput("evaluate: plans with an unknown reader", EVALUATE, 3, ("NoReader",),
             write("masks/plans.json", '{"image_reader_writer": "NoReader"}')),
    BadInput("evaluate: label 7 of 3", EVALUATE, 3, ("test_0.nii.gz", "7"),
             lambda w: edit_image(w.masks / "test_0.nii.gz", lambda v: np.full_like(v, 7))),
    BadInput("evaluate: mask of probabilities", EVALUATE, 3, ("test_0.nii.gz",),
             lambda w: edit_image(w.masks / "test_0.nii.gz", lambda v: v.astype(np.float32) + 0.5)),
    BadInput("evaluate: NaN", EVALUATE, 3, ("test_0.nii.gz",),
             lambda w: edit_image(w.masks / "test_0.nii.gz", lambda v: np.full(v.shape, np.nan, np.float32))),
    BadInput("evaluate: wrong spacing", EVALUATE, 3, ("test_0", "spacing", "tolerance"),
             lambda w: edit_image(w.masks / "test_0.nii.gz", spacing=1.5)),
    BadInput("evaluate: wrong shape", EVALUATE, 3, ("test_0", "shape"),
             lambda w: edit_image(w.masks / "test_0.nii.gz", lambda v: v[:9])),
    BadInput("evaluate: corrupt gzip", EVALUATE, 3, ("test_0.nii.gz", "cannot be read"),
             write("masks/test_0.nii.gz", b"\x1f\x8bxxxx")),
    BadInput("evaluate: truncated gzip", EVALUATE, 3, ("test_0.nii.gz", "cannot be read"),
             lambda w: cut(w.masks / "test_0.nii.gz")),
    BadInput("evaluate: truncated reference", EVALUATE, 3, ("labels/test_0.nii.gz", "cannot be read"),
             lambda w: cut(w.labels / "test_0.nii.gz")),
    BadInput("evaluate: output that is no .json", f"{EVALUATE} -o {{root}}/scores.csv", 2, ("scores.csv", ".json")),
    BadInput("evaluate: output below a file", f"{EVALUATE} -o {{root}}/file/scores.json", 4, ("{root}/file is a file",),
             write("file", "")),
    BadInput("evaluate: output that is a device", f"{EVALUATE} -o /dev/full", 4, ("/dev/full",)),
    BadInput("evaluate: output that is a folder", f"{EVALUATE} -o {{root}}/scores.json", 4, ("scores.json",),
             lambda w: (w.root / "scores.json").mkdir()),
    BadInput("evaluate: no processes", f"{EVALUATE} -np 0", 2, ("-np 0",)),
    BadInput("evaluate: negative tolerance", f"{EVALUATE} -nsd_tolerance_mm -1", 2, ("-1",)),
    BadInput("evaluate: tolerance that is not a number", f"{EVALUATE} -nsd_tolerance_mm nan", 2, ("nan",)),
    BadInput("evaluate: ignore label without labels", f"{EVALUATE} -il 3", 2, ("-il 3",)),
    BadInput("evaluate: unknown metrics", f"{EVALUATE} -metrics voxel", 2, ("voxel", "paper")),
    BadInput("evaluate: unknown metrics, old spelling", f"{EVALUATE} -protocol voxel", 2, ("voxel", "paper")),
    BadInput("evaluate: one folder", "nnssl_evaluate {root}/labels", 2,
             ("folders", "nnssl_evaluate LABELS PREDICTIONS")),
]  # fmt: skip

ROW = '{"reference_file": "%s.nii.gz", "prediction_file": "%s.nii.gz", "metrics": {"1": {"Dice": 0.5, "IoU": 0.3}}}'
COMPARE = "nnssl_compare {root}/masks {root}/labels -baseline {root}/masks"


def scored(masks: str = '{"metric_per_case": [%s]}' % (ROW % ("a", "a")), case: str = "a") -> Callable[[World], None]:
    """Return a change that writes summaries into the folders of masks and labels."""

    def change(world: World) -> None:
        (world.masks / "summary.json").write_text(masks)
        (world.labels / "summary.json").write_text('{"metric_per_case": [%s]}' % (ROW % (case, case)))

    return change


COMPARE_CASES = [
    BadInput("compare: nothing named", "nnssl_compare", 2, ("nnssl_compare -d ID",)),
    BadInput("compare: places and a data set", f"{COMPARE} -d 906", 2, ("nnssl_compare -d ID",)),
    BadInput("compare: fold without a data set", f"{COMPARE} -f 0", 2, ("fold", "data set"), scored()),
    BadInput("compare: no such place", COMPARE, 3, ("{root}/masks", "nnssl_evaluate LABELS {root}/masks")),
    BadInput("compare: no such folder", COMPARE.replace("/labels", "/gone"), 3, ("{root}/gone", "nnssl_runs"),
             scored()),
    BadInput("compare: no baseline", COMPARE.partition(" -")[0], 2, ("-baseline NAME", "masks, labels"), scored()),
    BadInput("compare: the baseline alone", "nnssl_compare {root}/masks -baseline {root}/masks", 2,
             ("no method beside",), scored()),
    BadInput("compare: one folder twice", COMPARE.replace("/labels", "/masks/summary.json"), 2,
             ("named twice",), scored()),
    BadInput("compare: one word twice", "nnssl_compare {root}/masks {root}/masks", 2,
             ("named twice", "nnssl_compare A B"), scored()),
    BadInput("compare: one folder only", "nnssl_compare {root}/masks", 2, ("nnssl_compare A B",), scored()),
    BadInput("compare: not JSON", COMPARE, 3, ("{root}/masks/summary.json", "JSON"), scored("{")),
    BadInput("compare: no summary", COMPARE, 3, ("{root}/masks/summary.json", "metric_per_case"), scored("{}")),
    BadInput("compare: no cases", COMPARE, 3, ("no case",), scored('{"metric_per_case": []}')),
    BadInput("compare: other cases", COMPARE, 3, ("no case in common", "a", "b"), scored(case="b")),
    BadInput("compare: metric that is not in the summary", f"{COMPARE} -metric hd95_mm", 3,
             ("hd95_mm", "nnssl_evaluate LABELS"), scored()),
    BadInput("compare: unknown metric", f"{COMPARE} -metric HD95", 2, ("-metric HD95", "hd95_mm"), scored()),
    BadInput("compare: run without validation", COMPARE.replace("labels", FOLD.replace("{dataset}", DATASET)), 3,
             ("not validated", "--val"), scored()),
    BadInput("compare: output below a file", f"{COMPARE} -o {{root}}/file/out", 4, ("{root}/file",),
             lambda w: [scored()(w), write("file", "")(w)]),
    BadInput("compare: output that is a folder", f"{COMPARE} -o {{root}}/out", 4, ("comparison.csv",),
             lambda w: [scored()(w), (w.root / "out" / "comparison.csv").mkdir(parents=True)]),
    BadInput("compare: data set without runs", "nnssl_compare -d 907", 2, ("nnssl_runs",)),
    BadInput("compare: nnUNet_results unset", "nnssl_compare -d 906", 4, ("export nnUNet_results=",),
             unset("nnUNet_results")),
]  # fmt: skip

REPORT = "nnssl_report {root}/masks {root}/labels -baseline {root}/masks -o {root}/report"
LOOK = "nnssl_look {root}/labels -o {root}/look.png"
REPORT_CASES = [
    BadInput("report: nothing named", "nnssl_report -o {root}/report", 2, ("-d ID",)),
    BadInput("report: no folder", "nnssl_report {root}/masks", 2, ("-o",)),
    BadInput("report: no such place", REPORT.replace("/labels", "/gone"), 3, ("{root}/gone",), scored()),
    BadInput("report: no baseline", "nnssl_report {root}/masks {root}/labels -o {root}/report", 2,
             ("-baseline NAME",), scored()),
    BadInput("report: unknown metric", f"{REPORT} -metric HD95", 2, ("-metric HD95", "hd95_mm"), scored()),
    BadInput("report: cases below zero", f"{REPORT} -cases -1", 2, ("-cases", "-1"), scored()),
    BadInput("report: below a file", REPORT.replace("/report", "/file/report"), 4, ("{root}/file",),
             lambda w: [scored()(w), write("file", "")(w)]),
    BadInput("look: nothing named", "nnssl_look", 2, ("nnssl_look -d ID",)),
    BadInput("look: scan and data set", f"{LOOK} -d 906", 2, ("nnssl_look -d ID",)),
    BadInput("look: no such scan", LOOK.replace("/labels", "/gone"), 3, ("{root}/gone",)),
    BadInput("look: no PNG", LOOK.replace(".png", ".jpg"), 2, ("look.jpg", "look.png")),
    BadInput("look: no scan asked for", f"{LOOK} -n 0", 2, ("-n", "0")),
    BadInput("look: unknown data set", "nnssl_look -d 999", 2, ("999",)),
]  # fmt: skip

PHANTOM_CASES = [
    BadInput("phantom: id of zero", PHANTOM.replace("907", "0"), 2, ("-d 0", "1 to 999")),
    BadInput("phantom: id that is a word", PHANTOM.replace("907", "one"), 2, ("-d", "one")),
    BadInput("phantom: id that is taken", PHANTOM.replace("907", "906"), 2, (DATASET, "-d")),
    BadInput("phantom: data set of a user", f"{PHANTOM} -n Bad --overwrite".replace("907", "906"), 2,
             (DATASET, "only data sets that nnssl_phantom wrote")),
    BadInput("phantom: name that is a path", f"{PHANTOM} -n ../x", 2, ("../x",)),
    BadInput("phantom: nothing labelled", f"{PHANTOM} -labelled 0", 2, ("-labelled 0",)),
    BadInput("phantom: number of scans below zero", f"{PHANTOM} -test -1", 2, ("-test -1",)),
    BadInput("phantom: too small", f"{PHANTOM} -shape 8 16 16", 2, ("-shape 8 16 16", "16")),
    BadInput("phantom: two axes", f"{PHANTOM} -shape 16 16", 2, ("-shape",)),
    BadInput("phantom: nnUNet_raw unset", PHANTOM, 4, ("export nnUNet_raw=",), unset("nnUNet_raw")),
    BadInput("phantom: nnUNet_raw below a file", PHANTOM, 4, ("{root}/file",), point("nnUNet_raw", "file/below")),
    BadInput("convert: unknown data set", "nnssl_convert livers -i {root}/labels -d 7", 2, ("livers", "acdc")),
    BadInput("convert: shortened option", "nnssl_convert acdc -i {root}/labels -d 7 -n 3", 2, ("-n 3",)),
    BadInput("convert: no folder", "nnssl_convert acdc -d 7", 2, ("-i",)),
    BadInput("convert: no such folder", "nnssl_convert acdc -i {root}/nowhere -d 7", 2, ("{root}/nowhere",)),
    BadInput("convert: another folder", "nnssl_convert acdc -i {root}/labels -d 7", 3, ("training/patientXXX",)),
    BadInput("convert: id that is taken", "nnssl_convert acdc -i {root}/labels -d 906", 2, (DATASET, "-d")),
    BadInput("convert: nnUNet_raw unset", "nnssl_convert acdc -i {root}/labels -d 7", 4, ("export nnUNet_raw=",),
             unset("nnUNet_raw")),
    BadInput("methods: unknown option", "nnssl_methods --fast", 2, ("--fast",)),
]  # fmt: skip

BUNDLE_CASES = [
    BadInput("export: no such model", "nnssl_export nowhere -o {root}/m.zip", 2, ("nowhere", MODEL, "nnssl_runs")),
    BadInput("export: another ending", f"nnssl_export {MODEL} -o {{root}}/m.tar", 2, ("m.tar", "-o")),
    BadInput("export: no such fold", f"nnssl_export {MODEL} -f 3 -o {{root}}/m.zip", 2, ("fold 3", "-f 0")),
    BadInput("export: damaged checkpoint", f"nnssl_export {MODEL} -o {{root}}/m.zip", 4, ("truncated",),
             lambda world: cut(world.fold / "checkpoint_final.pth")),
    BadInput("export: a file in the way", f"nnssl_export {MODEL} -o {{root}}/nnUNet_raw/{DATASET}/dataset.json/m.zip",
             4, ("dataset.json is a file",)),
    BadInput("install: no such file", "nnssl_install {root}/nowhere.zip", 2, ("{root}/nowhere.zip",)),
    BadInput("install: no archive", f"nnssl_install {{root}}/nnUNet_raw/{DATASET}/dataset.json", 3,
             ("refused", "no zip archive", "nothing was installed")),
    BadInput("install: nnUNet_results unset", "nnssl_install {root}/nowhere.zip", 4, ("export nnUNet_results=",),
             unset("nnUNet_results")),
]  # fmt: skip

QUALITY = f"nnssl_pseudo_quality -m {MODEL} -i {{root}}/scans -o {{root}}/out -device cpu"
ANNOTATION_CASES = [
    BadInput("quality: no such model", QUALITY.replace(MODEL, "nowhere"), 2, ("nowhere", MODEL)),
    BadInput("quality: no such scans", QUALITY.replace("scans", "nowhere"), 3, ("{root}/nowhere",)),
    BadInput("quality: limits", f"{QUALITY} -accept 0.5 -drop 0.7", 2, ("-drop 0.7", "-accept 0.5")),
    BadInput("quality: into the scans", QUALITY.replace("/out", "/scans"), 2, ("choose another -o",)),
    BadInput("suggest: no such data set", "nnssl_suggest -d 7 -o {root}/out", 2, ("'7'", DATASET)),
    BadInput("suggest: unknown strategy", "nnssl_suggest -d 906 -o {root}/out -strategy entropie", 2,
             ("entropie", "-strategy entropy")),
    BadInput("suggest: into the data set", f"nnssl_suggest -d 906 -o {{root}}/nnUNet_raw/{DATASET}/out", 2,
             ("no part of the raw data set",)),
    BadInput("suggest: nnUNet_raw unset", "nnssl_suggest -d 906 -o {root}/out", 4, ("export nnUNet_raw=",),
             unset("nnUNet_raw")),
    BadInput("accept: no such folder", "nnssl_accept {root}/nowhere -d 906", 2, ("{root}/nowhere",)),
    BadInput("accept: unknown data set", "nnssl_accept {root}/masks", 2, ("-d DATASET",)),
    BadInput("accept: masks of other scans", "nnssl_accept {root}/scans -d 906", 3, ("have no scan", "{root}/scans")),
]  # fmt: skip

CLEAN_CASES = [
    BadInput("clean: no such data set", "nnssl_clean -d 7", 2, ("'7'", DATASET, "nnssl_plan_and_preprocess -d 7")),
    BadInput("clean: unknown option", "nnssl_clean --force", 2, ("--force", "nnssl_clean --help")),
    BadInput("clean: data set without -d", "nnssl_clean 906", 2, ("906",)),
    BadInput("clean: nnUNet_preprocessed unset", "nnssl_clean", 4, ("export nnUNet_preprocessed=",),
             unset("nnUNet_preprocessed")),
    BadInput("clean: no such folder", "nnssl_clean --yes", 4, ("nnUNet_preprocessed", "{root}/nowhere"),
             point("nnUNet_preprocessed", "nowhere")),
    BadInput("clean: a file in the place of the folder", "nnssl_clean", 4, ("nnUNet_preprocessed", "{root}/file"),
             point("nnUNet_preprocessed", "file")),
]  # fmt: skip

CASES = [
    *(BadInput(f"raw: {name}", PLAN, 3, words, fresh(spoil)) for name, spoil, words in RAW_DATA),
    *PLAN_OPTIONS,
    *TRAIN_CASES,
    *PREDICT_CASES,
    *EVALUATE_CASES,
    *COMPARE_CASES,
    *REPORT_CASES,
    *PHANTOM_CASES,
    *BUNDLE_CASES,
    *ANNOTATION_CASES,
    *CLEAN_CASES,
]
