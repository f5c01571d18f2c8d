"""`nnssl.predict`: a path, an array or an image in, the same kind of thing out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from nnssl.data.raw import channels_of
from nnssl.errors import UsageError
from nnssl.evaluation.postprocessing import Postprocessing
from nnssl.host import READER_OF_3D_TIFF, READERS_OF_PICTURES
from nnssl.inference.inputs import ScanToPredict, case_of_files, cases_in_folder, cases_of_list, check_voxel_sizes
from nnssl.inference.models import (
    FINAL_CHECKPOINT,
    BestChoice,
    ChosenModel,
    ModelQuery,
    find_best_choice,
    find_ensemble,
    find_folds,
    find_model,
    told,
)
from nnssl.inference.postprocessing import Choice
from nnssl.inference.progress import ProgressStyle
from nnssl.names import DATASET_JSON, FILE_ENDING_KEY, PLANS_JSON
from nnssl.system.files import DATASET_KEYS, PLANS_KEYS, check_writable, read_object

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from nnssl.inference.ensemble import Ensemble
    from nnssl.inference.predictor import Predictor


class ModelOptions(TypedDict, total=False):
    """Which model predicts, and how; every key may be left out.

    Attributes:
        model: model folder; takes the place of the names. A list of model or fold folders, or of their names below
            `nnUNet_results`, is an ensemble: the mean of their probabilities.
        dataset: data set name or id.
        trainer: trainer class name.
        plans: plans name.
        configuration: `2d`, `3d_fullres`, …
        tag: tag of the run; `default` is the run without a tag.
        folds: folds that are averaged, their logits in one model, their probabilities in an ensemble; default all that
            are trained.
        checkpoint: file name, default `checkpoint_final.pth`.
        step_size: step between patches in units of the patch size, in (0, 1], default 0.5.
        mirroring: test-time augmentation by mirroring, default True.
        device: `cuda`, `cpu` or `mps`, default the best one there is.
        on_device: keep results on the GPU, default True.
        postprocessing: follow the decision that is stored with the model (largest components), default True.
        verbose: let nnU-Net print what it does, default False.
    """

    model: str | Path | Sequence[str | Path] | None
    dataset: str | int | None
    trainer: str | None
    plans: str | None
    configuration: str | None
    tag: str | None
    folds: Sequence[str | int] | None
    checkpoint: str
    step_size: float
    mirroring: bool
    device: str | torch.device | None
    on_device: bool
    postprocessing: bool
    verbose: bool


def load_predictor(**options: Unpack[ModelOptions]) -> Predictor | Ensemble:
    """Return a predictor with the model that the options select, for use in a loop; of several models an ensemble.

    Without options the choice of `nnssl_find_best` is taken, else the only trained model below `nnUNet_results`.

    Raises:
        UsageError: no model, or several, fit; no such fold; a cascade; the models of an ensemble do not fit together.
        DataError: `model` is no model folder, or its decision about post-processing is damaged.
        EnvironmentProblem: a checkpoint is damaged, there is no such device, or `nnUNet_results` is not set.
    """
    return _load(*_chosen(options))


def _load(
    models: Sequence[ChosenModel], settings: dict[str, Any], best: BestChoice | None = None
) -> Predictor | Ensemble:
    from nnssl.inference.ensemble import Ensemble
    from nnssl.inference.predictor import Predictor

    decided = None if best is None else Postprocessing.from_dict(best.postprocessing, best.file)
    predictor = (
        Ensemble.from_models(models, **settings)
        if len(models) > 1
        else Predictor.from_folder(models[0].folder, folds=models[0].folds, **settings)
    )
    if decided is not None and settings.get("postprocessing", True):
        predictor.postprocessing = Choice(decided, str(decided))
    return predictor


def _chosen(options: ModelOptions) -> tuple[list[ChosenModel], dict[str, Any], BestChoice | None]:
    """Return the models with their folds, what remains for `Predictor.from_folder`, and what chose the models."""
    settings: dict[str, Any] = dict(options)
    unknown = sorted(settings.keys() - ModelOptions.__annotations__.keys())
    if unknown:
        raise UsageError(
            f"unknown option {', '.join(unknown)}", why=f"known: {', '.join(ModelOptions.__annotations__)}"
        )
    folder, folds = settings.pop("model", None), settings.pop("folds", None)
    names = {key: settings.pop(key, None) for key in ("dataset", "trainer", "plans", "configuration", "tag")}
    checkpoint = settings.setdefault("checkpoint", FINAL_CHECKPOINT)
    if isinstance(folder, list | tuple):
        if len(folder) > 1:
            return find_ensemble(folder, folds, checkpoint), settings, None
        folder = folder[0] if folder else None
    free = folder is None and folds is None and checkpoint == FINAL_CHECKPOINT
    if free and all(names[key] is None for key in ("trainer", "plans", "configuration", "tag")):
        best = find_best_choice(names["dataset"])
        if best is not None:
            return best.models, settings, best
    model = find_model(ModelQuery(folder=None if folder is None else Path(folder), checkpoint=checkpoint, **names))
    return [ChosenModel(model, find_folds(model, folds, checkpoint))], settings, None


def predict(
    image: Any,  # noqa: ANN401 - the types are in the docstring
    output: str | Path | None = None,
    *,
    spacing_mm: Sequence[float] | None = None,
    save_probabilities: bool = False,
    **options: Unpack[ModelOptions],
) -> Any:  # noqa: ANN401
    """Segment scans with a trained model.

    Args:
        image: one of
            - a folder of `CASE_0000.nii.gz` files (one channel: also `CASE.nii.gz`) → the list of the masks' paths, in
              the folder `output`;
            - one file, or a list of files with one channel each → the mask's path; `output` is the file or its folder;
            - a list of scans: files for a model of one channel, else lists of files with one channel each → the list of
              the masks' paths, in the folder `output`;
            - a numpy array (z, y, x) or (C, z, y, x) with `spacing_mm` → a numpy array (z, y, x);
            - a SimpleITK image → a SimpleITK image with its geometry;
            - a nibabel image → a nibabel image with its affine;
            - a list of arrays or images with one channel each → the type of the first.
        output: for paths only, and needed there.
        spacing_mm: for arrays only: voxel size in mm in the array's axis order.
        save_probabilities: for paths only: also write `CASE.npz` and `CASE.pkl` as nnU-Net does.
        options: which model predicts, and how: see `ModelOptions`.

    Returns:
        Masks of integer labels, as the list above says.

    Raises:
        UsageError: an argument makes no sense, the model is not clear (the ones there are listed), or the models of an
            ensemble do not fit together.
        DataError: a scan is missing, unreadable or not what the model needs.
        EnvironmentProblem: damaged checkpoint, no such device, output that cannot be written.
        OutOfMemory: the device has not enough memory.

    Example:
        >>> masks = nnssl.predict("imagesTs", "predictions", dataset=901)  # doctest: +SKIP
    """
    channels = image if isinstance(image, list | tuple) else [image]
    if not channels:
        raise UsageError("there is no image to predict")
    nested = all(isinstance(scan, list | tuple) and scan and _are_paths(scan) for scan in channels)
    if not nested and not _are_paths(channels):
        if output is not None:
            raise UsageError("output is for paths", why="an image in memory comes back as an image in memory")
        return load_predictor(**options).predict_image(image, spacing_mm)
    if output is None:
        raise UsageError("output is needed", where="nnssl.predict", why="scans on disk become masks on disk")
    scans = [[Path(channel) for channel in scan] for scan in channels] if nested else None
    source = [] if nested else [Path(channel) for channel in channels]
    job = DiskJob(source, Path(output), scans=scans, save_probabilities=save_probabilities)
    result = predict_files(job, options)
    return result.masks[0] if result.single else result.masks


def _are_paths(values: Sequence[object]) -> bool:
    return all(isinstance(value, str | Path) for value in values)


@dataclass(frozen=True)
class DiskJob:
    """Scans on disk to predict, and how the work is divided.

    Attributes:
        source: a folder of `CASE_0000` files, or the channel files of one case; for a model of one channel several
            files are one case each.
        scans: instead of `source`: the channel files of several cases.
        output: folder of the masks, or the mask's file for one case.
        save_probabilities: also write `CASE.npz` and `CASE.pkl`.
        overwrite: predict cases again whose mask is there.
        num_parts: number of calls that share the cases.
        part_id: which of them this one is, from 0.
        readers: threads that read and preprocess ahead, 0 for none; None: 3 on a GPU, else 1.
        writers: threads that resample and write, 0 for none; None: 3 on a GPU, else 1.
        threads: CPU threads of the network, None leaves torch's setting.
        progress: a bar, log lines, or nothing.
    """

    source: Sequence[Path]
    output: Path
    save_probabilities: bool = False
    overwrite: bool = True
    num_parts: int = 1
    part_id: int = 0
    readers: int | None = None
    writers: int | None = None
    threads: int | None = None
    progress: ProgressStyle = "off"
    scans: Sequence[Sequence[Path]] | None = None

    def cases(self, ending: str, files: int) -> list[ScanToPredict]:
        """Return the cases of this part, once the output is known to be writable.

        Args:
            ending: of the files that the model was trained on, with its dot.
            files: image files of a case.

        Raises:
            UsageError: `output` is the folder of the scans, `part_id` is not below `num_parts`, or a count is negative.
            DataError: a scan is missing or wrongly named.
            EnvironmentProblem: `output` cannot be written.
        """
        if not 0 <= self.part_id < self.num_parts:
            why = "part ids count from 0 to the number of parts minus 1"
            raise UsageError(f"-part_id {self.part_id} with -num_parts {self.num_parts}", why=why)
        if min(self.readers or 0, self.writers or 0) < 0:
            raise UsageError("-npp and -nps count threads, from 0")
        if self.scans is not None:
            cases = cases_of_list(self.scans, self.output, ending)
        elif self.has_several(files):
            cases = cases_of_list([[file] for file in self.source], self.output, ending)
        elif len(self.source) == 1 and not self.source[0].is_file():
            if self.output.resolve() == self.source[0].resolve():
                raise UsageError("the output is the folder of the scans", where=self.output, run="choose another -o")
            cases = cases_in_folder(self.source[0], self.output, ending, files)
        else:
            cases = [case_of_files(self.source, self.output, ending)]
        check_writable(cases[0].mask.parent, "the output folder", "choose another folder with -o")
        return cases[self.part_id :: self.num_parts]

    def has_several(self, files: int) -> bool:
        """Return whether the source lists scans, not the channels of one scan."""
        return files == 1 and len(self.source) > 1

    def is_done(self, case: ScanToPredict) -> bool:
        """Return whether everything this job writes for the case is there."""
        return case.mask.is_file() and (not self.save_probabilities or Path(f"{case.stem}.npz").is_file())


@dataclass(frozen=True)
class DiskResult:
    """What `predict_files` did.

    Attributes:
        masks: of all cases of the job, in order.
        predicted: number of cases predicted by this call; the others were there.
        folder: of the masks.
        models: the models that were used with their folds, several for an ensemble.
        device: where the network ran.
        postprocessing: what was done to the masks, and why; empty where the model has no decision, or it was not asked
            for.
        single: the job was one scan, not a folder or a list of scans.
        best: the file of `nnssl_find_best` that named the models, None where the user did.
        memory_bytes: the largest memory of the process, computed before the first scan; None without scans.
    """

    masks: list[Path]
    predicted: int
    folder: Path
    models: list[ChosenModel]
    device: str
    postprocessing: str
    single: bool
    best: Path | None = None
    memory_bytes: int | None = None

    @property
    def lines(self) -> list[str]:
        """The model that was used, and what was done to its masks, for the terminal."""
        lines = [f"model: {model}, on {self.device}" for model in self.models]
        if len(lines) > 1:
            lines.append(f"ensemble: mean probabilities of {len(lines)} models")
        lines += [f"chosen by nnssl_find_best: {self.best}"] if self.best else []
        return [*lines, f"post-processing: {self.postprocessing}"] if self.postprocessing else lines

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "masks": [str(mask) for mask in self.masks],
            "predicted": self.predicted,
            **told(self.models),
            "best": str(self.best) if self.best else None,
            "device": self.device,
            "postprocessing": self.postprocessing,
            "memory_bytes": self.memory_bytes,
        }


def predict_files(job: DiskJob, options: ModelOptions) -> DiskResult:
    """Predict scans on disk.

    Model, scans and output are checked before anything is computed or written; every mask is written in one piece. As
    with nnU-Net the folder also receives dataset.json, plans.json and predict_from_raw_data_args.json, where the
    source is a folder.

    Raises:
        UsageError: an argument makes no sense, the model is not clear (the ones there are listed), or the models of an
            ensemble do not fit together.
        DataError: a scan is missing, unreadable or not what the model needs.
        EnvironmentProblem: damaged checkpoint, no such device, output that cannot be written.
        OutOfMemory: this machine has not enough memory for a scan, before the first one is predicted, or the device
            has not enough for the case that is named.
    """
    models, settings, best = _chosen(options)
    first = models[0].folder.path
    description, plans = (
        read_object(first / DATASET_JSON, keys=DATASET_KEYS),
        read_object(first / PLANS_JSON, keys=PLANS_KEYS),
    )
    pictures = plans["image_reader_writer"] in READERS_OF_PICTURES
    files = 1 if pictures else len(channels_of(description))  # of a case
    cases = job.cases(str(description[FILE_ENDING_KEY]), files)
    if plans["image_reader_writer"] == READER_OF_3D_TIFF:
        check_voxel_sizes(cases, plans["original_median_spacing_after_transp"])
    todo = [case for case in cases if job.overwrite or not job.is_done(case)]
    from nnssl.inference.memory import plan_memory
    from nnssl.inference.pipeline import using_threads
    from nnssl.inference.records import write_records

    predictor = _load(models, settings, best)
    facts = predictor.check_cases(todo)
    folder = cases[0].mask.parent if cases else job.output
    from_folder = bool(job.source) and job.source[0].is_dir()
    device = predictor.first.device
    workers = 3 if device.type == "cuda" else 1
    readers, writers = (workers if given is None else given for given in (job.readers, job.writers))
    memory = None
    if facts:
        memory = plan_memory(predictor.models, facts, job.save_probabilities, readers, writers)
        readers, writers = memory.readers, memory.writers
    if todo and from_folder:
        write_records(folder, predictor, models, job)
    with using_threads(job.threads if device.type == "cpu" else None):
        predictor.predict_cases(
            todo,
            save_probabilities=job.save_probabilities,
            readers=readers,
            writers=writers,
            progress=job.progress,
        )
    masks = [case.mask for case in cases]
    single = not (from_folder or job.scans is not None or job.has_several(files))
    return DiskResult(
        masks,
        len(todo),
        folder,
        models,
        str(device),
        predictor.postprocessing.line,
        single,
        best.file if best else None,
        memory.peak_bytes if memory else None,
    )
