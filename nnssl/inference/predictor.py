"""nnU-Net's predictor with a model that stays loaded, and with threads in place of worker processes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from typing_extensions import Self

from nnssl.data.scans import ScanFacts
from nnssl.errors import DataError, OutOfMemory, UsageError
from nnssl.evaluation.postprocessing import postprocess
from nnssl.host import input_channels
from nnssl.inference.export import write_mask, write_probability_parts
from nnssl.inference.images import Array, LoadedImage, load_image
from nnssl.inference.inputs import ScanToPredict, check_cases
from nnssl.inference.models import ModelFolder, ModelQuery, find_folds, find_model
from nnssl.inference.network import LoadedModel, load_model
from nnssl.inference.pipeline import run_overlapped
from nnssl.inference.postprocessing import Choice, choose_postprocessing
from nnssl.inference.progress import Progress, ProgressStyle
from nnssl.inference.restoring import Restoration, WholeRestoration, restoration_of
from nnssl.inference.tiles import Slicer, add_tiles, images_a_pass, mirrored_mean
from nnssl.names import CHECKPOINT_FINAL, FILE_ENDING_KEY, FOLD_PREFIX
from nnssl.system.devices import choose_device

ImageT = TypeVar("ImageT")
Prepared = tuple[torch.Tensor, dict[str, Any]]  # preprocessed image (C, *S), and what preprocessing noted about it
VALIDATION_WRITERS = 2  # bounds the memory of logits that wait for their export


class Predictor(nnUNetPredictor):
    """A trained model, loaded once, for any number of scans.

    The masks are those of nnU-Net's predictor, apart from rounding and the model's stored post-processing. Further
    differences: threads in place of worker processes, a network from the plans without a search for trainer classes,
    and batches of tiles, slices and mirrored copies.

    Args:
        step_size: step between patches in units of the patch size, in (0, 1].
        mirroring: average over mirrored copies (test-time augmentation).
        device: `cuda`, `cpu` or `mps`; None takes the best device of this machine.
        on_device: keep the whole result on the GPU; otherwise only patches are on the GPU.
        postprocessing: follow the decision that is stored with the model (`postprocessing.json`).
        verbose: let nnU-Net print what it does.

    Raises:
        UsageError: `step_size` is out of range.
        EnvironmentProblem: this machine has no such device.
    """

    def __init__(
        self,
        *,
        step_size: float = 0.5,
        mirroring: bool = True,
        device: str | torch.device | None = None,
        on_device: bool = True,
        postprocessing: bool = True,
        verbose: bool = False,
    ) -> None:
        if not 0 < step_size <= 1:
            raise UsageError(f"-step_size {step_size} is not in (0, 1]")
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net's constructor prints on every device but cuda
            super().__init__(step_size, True, mirroring, on_device, choose_device(device), verbose, verbose, False)
        self.use_postprocessing, self.postprocessing = postprocessing, Choice()
        self.model: ModelFolder | None = None
        self.folds: list[str] = []
        self.progress = Progress(0, "off")

    @classmethod
    def from_folder(
        cls,
        folder: str | Path | ModelFolder,
        *,
        folds: Sequence[str | int] | None = None,
        checkpoint: str = CHECKPOINT_FINAL,
        **settings: Any,  # noqa: ANN401 - the arguments of the class
    ) -> Self:
        """Return a predictor with the model of a folder (`…/TRAINER__PLANS__CONFIGURATION`) loaded.

        Args:
            folder: the model folder.
            folds: folds whose logits are averaged; None takes all folds that hold the checkpoint.
            checkpoint: file name inside the fold folders.
            settings: arguments of the class.

        Raises:
            UsageError: no such fold or checkpoint, or the configuration is the second stage of a cascade.
            DataError: the folder is no model folder, or its decision about post-processing is damaged.
            EnvironmentProblem: a checkpoint is damaged or does not fit the plans, or this machine has no such device.
        """
        predictor = cls(**settings)
        if not isinstance(folder, ModelFolder):
            folder = find_model(ModelQuery(folder=Path(folder), checkpoint=checkpoint))
        predictor._load(folder, find_folds(folder, folds, checkpoint), checkpoint)
        return predictor

    def initialize_from_trained_model_folder(
        self,
        model_training_output_dir: str,
        use_folds: Sequence[str | int] | None,
        checkpoint_name: str = CHECKPOINT_FINAL,
    ) -> None:
        """Load a model; nnU-Net's name of this method. The errors are those of `from_folder`."""
        model = find_model(ModelQuery(folder=Path(model_training_output_dir), checkpoint=checkpoint_name))
        self._load(model, find_folds(model, use_folds, checkpoint_name), checkpoint_name)

    def _load(self, folder: ModelFolder, folds: list[str], checkpoint: str) -> None:
        loaded: LoadedModel = load_model([folder.path / f"{FOLD_PREFIX}{fold}" / checkpoint for fold in folds])
        self.manual_initialization(
            loaded.network,
            loaded.plans,
            loaded.configuration,
            [item.weights for item in loaded.checkpoints],
            loaded.dataset_json,
            loaded.checkpoints[0].trainer,
            loaded.checkpoints[0].mirror_axes,
        )
        self._preprocessor = loaded.preprocessor
        self._preprocessing = loaded.preprocessing
        self.model, self.folds = folder, folds
        self.postprocessing = choose_postprocessing(folder.path, folds) if self.use_postprocessing else Choice()

    @property
    def first(self) -> Self:
        """This predictor: the first of its only model, as in an `Ensemble`."""
        return self

    @property
    def models(self) -> list[Self]:
        """This predictor alone, where an `Ensemble` has several."""
        return [self]

    @property
    def channels(self) -> int:
        """Number of image channels that the model needs."""
        return input_channels(self.plans_manager, self.configuration_manager, self.dataset_json)

    def resamples_in_slabs(self, spacing: Sequence[float], target: Sequence[float]) -> bool:
        """Return whether scans of a spacing are resampled without further copies; both in the plans' order of axes."""
        return self._preprocessing.in_slabs(spacing, target)

    @property
    def file_ending(self) -> str:
        """File ending, with its dot, of the scans that the model was trained on."""
        return str(self.dataset_json[FILE_ENDING_KEY])

    def check_cases(self, cases: Sequence[ScanToPredict]) -> list[ScanFacts]:
        """Read every scan once, and return the facts; a `DataError` lists all scans that the model cannot take."""
        return check_cases(cases, self.plans_manager.image_reader_writer_class, self.channels)

    def predict_cases(
        self,
        cases: Sequence[ScanToPredict],
        *,
        save_probabilities: bool = False,
        readers: int = 1,
        writers: int = 1,
        progress: ProgressStyle = "off",
    ) -> None:
        """Predict scans on disk; reading, network and export of neighbouring cases overlap.

        Args:
            cases: scans that `check_cases` has passed.
            save_probabilities: also write `CASE.npz` and `CASE.pkl` beside the mask.
            readers: threads that read and preprocess ahead, 0 for none.
            writers: threads that resample and write, 0 for none.
            progress: a bar, log lines, or nothing.

        Raises:
            DataError: the intensities of a scan cannot be normalised; the message names file, channel and value.
            OutOfMemory: the device has too little memory for a case; the message names the case.
            EnvironmentProblem: a file cannot be written.
        """

        def infer(case: ScanToPredict, prepared: Prepared) -> torch.Tensor:
            return self._infer(case.name, prepared)

        def export(case: ScanToPredict, prepared: Prepared, logits: torch.Tensor) -> None:
            self._export(case.mask, case.stem, logits, prepared[1], save_probabilities)

        stages: tuple[Callable[..., Any], ...] = (self.prepare, infer, export)
        with Progress(len(cases), progress) as self.progress:
            for case in run_overlapped(cases, *stages, readers=readers, writers=writers):
                self.progress.finished(case.name)

    def probabilities_of(self, case: ScanToPredict, flipped: Sequence[int] = ()) -> tuple[Array, dict[str, Any]]:
        """Return the probabilities (C, z, y, x) of classes or regions on the grid of a scan, and its properties.

        Args:
            case: a scan that `check_cases` has passed.
            flipped: axes of the patch along which the network sees the scan mirrored.

        Raises:
            DataError: the intensities of the scan cannot be normalised; the message names file, channel and value.
            OutOfMemory: the device has too little memory for the scan.
        """
        data, properties = self.prepare(case)
        axes = [data.ndim - len(self.configuration_manager.patch_size) + axis for axis in flipped]
        logits = self._infer(case.name, (data.flip(axes), properties)).flip(axes)
        return self._restoration(logits, properties).mask_and_probabilities()[1], properties

    def mean_probabilities(self, name: str, prepared: Prepared) -> Array:
        """Return the mean of the folds' probabilities (C, z, y, x) on the grid of a scan.

        The masks of a single model come from averaged logits, as in nnU-Net; this is the mean after the softmax (the
        sigmoid for regions), which also compares models whose logits have other scales.

        Args:
            name: of the scan, for messages.
            prepared: of `prepare` or `prepare_loaded`.

        Raises:
            OutOfMemory: the device has too little memory for the scan.
        """
        every: list[dict[str, torch.Tensor]] = self.list_of_parameters  # type: ignore[has-type]
        total: Array | None = None
        try:
            for parameters in every:
                self.list_of_parameters = [parameters]
                _, probs = self._restoration(self._infer(name, prepared), prepared[1]).mask_and_probabilities()
                total = probs if total is None else total + probs
        finally:
            self.list_of_parameters = every
        assert total is not None
        mean: Array = total / np.float32(len(every))
        return mean

    def predict_preprocessed(
        self, cases: Iterable[str], load: Callable[[str], Prepared], folder: Path, *, save_probabilities: bool = False
    ) -> Iterator[str]:
        """Predict cases that are preprocessed already; yield each name when the network has passed the case.

        Reading, network and export of neighbouring cases overlap; all masks are written at the end of the iteration.

        Args:
            cases: names of the cases.
            load: returns the preprocessed image (C, *S) of a case, and what preprocessing noted about the scan.
            folder: folder of the masks.
            save_probabilities: also write `CASE.npz` and `CASE.pkl` beside the mask.

        Raises:
            EnvironmentProblem: a file cannot be written.
        """

        def infer(_: str, prepared: Prepared) -> torch.Tensor:
            return self.predict_sliding_window_return_logits(prepared[0]).cpu()

        def export(case: str, prepared: Prepared, logits: torch.Tensor) -> None:
            mask = folder / f"{case}{self.file_ending}"
            self._export(mask, folder / case, logits, prepared[1], save_probabilities)

        return run_overlapped(cases, load, infer, export, readers=1, writers=VALIDATION_WRITERS)

    def predict_image(self, image: ImageT, spacing_mm: Sequence[float] | None = None) -> ImageT:
        """Return the mask of one image in memory, as an image of the same type with the same geometry.

        Args:
            image: numpy array, SimpleITK image or nibabel image, or a list of them with one channel each (the mask then
                has the type of the first); see `nnssl.inference.images.load_image` for the axes.
            spacing_mm: voxel size in mm in the array's order of axes; for arrays only.

        Raises:
            UsageError: the type is none of these, or an array has no spacing.
            DataError: the number of channels is wrong, or a value is not finite, before or after normalisation.
        """
        loaded = load_image(image, spacing_mm, reorient=self.reorients)
        prepared = self.prepare_loaded(loaded)
        mask = self._restoration(self._infer("image", prepared), prepared[1]).mask()
        restored: ImageT = loaded.restore(postprocess(mask, self.postprocessing.decision))
        return restored

    @property
    def reorients(self) -> bool:
        """Whether the reader of the model's scans turns them to RAS."""
        return str(self.plans_manager.plans["image_reader_writer"]).endswith("WithReorient")

    def prepare_loaded(self, image: LoadedImage) -> Prepared:
        """Return an image in memory preprocessed, (C, *S), and what preprocessing noted about it.

        Raises:
            DataError: the number of channels is wrong, or a value is not finite, before or after normalisation.
        """
        if image.array.shape[0] != self.channels:
            raise DataError(
                f"the image has {image.array.shape[0]} channel(s), the model needs {self.channels}",
                where=f"image of shape {image.array.shape} (channel, z, y, x)",
            )
        bad = image.array.size - int(np.count_nonzero(np.isfinite(image.array)))
        if bad:
            raise DataError(f"the image has {bad} voxel(s) that are NaN or infinite", where="image")
        arguments = {"spacing": list(image.spacing_mm)}, self.plans_manager, self._preprocessing, self.dataset_json
        data, _, properties = self._preprocessor.run_case_npy(image.array, None, *arguments)
        self._check_slices("image", properties)
        return torch.from_numpy(data), properties

    def prepare(self, case: ScanToPredict) -> Prepared:
        """Return a scan that `check_cases` has passed preprocessed, (C, *S), and what preprocessing noted about it.

        Raises:
            DataError: the intensities of the scan cannot be normalised; the message names file, channel and value.
        """
        files = [str(file) for file in case.images]
        data, _, properties = self._preprocessor.run_case(
            files, None, self.plans_manager, self._preprocessing, self.dataset_json
        )
        self._check_slices(case.images[0], properties)
        return torch.from_numpy(data), properties

    def _check_slices(self, scan: object, properties: dict[str, Any]) -> None:
        """Refuse a one-slice scan whose slice lies across the slices of a 2-D model."""
        shape = properties["shape_before_cropping"]  # in the network's order of axes: the slices first
        if len(self.configuration_manager.patch_size) == 2 and 1 in shape[1:] and max(shape[1:]) > 1:
            axes = ["zyx"[axis] for axis in self.plans_manager.transpose_forward]
            raise DataError(
                "the scan is one voxel thick within the slices of the model",
                where=scan,
                why=f"the model's slices lie across axis {axes[0]}, the scan has one voxel along "
                + " and ".join(axis for axis, size in zip(axes[1:], shape[1:], strict=True) if size == 1),
                run="save the scan with the order of axes of the training scans",
            )

    def _infer(self, name: str, prepared: Prepared) -> torch.Tensor:
        try:
            return self.predict_logits_from_preprocessed_data(prepared[0])
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemory(
                f"out of memory on {self.device}",
                where=name,
                why=str(error).partition("\n")[0],
                run="--not_on_device keeps the result off the GPU; -device cpu needs no GPU memory",
            ) from error

    def _export(
        self, mask: Path, stem: Path, logits: torch.Tensor, properties: dict[str, Any], save_probabilities: bool
    ) -> None:
        """Write the mask, and the probabilities where a user wants them."""
        restoration = self._restoration(logits, properties)
        if save_probabilities:
            voxels, parts = restoration.mask_and_parts()
            write_probability_parts(stem, (len(logits), *voxels.shape), parts, properties)
        else:
            voxels = restoration.mask()
        done = postprocess(voxels, self.postprocessing.decision)
        write_mask(mask, done, properties, self.plans_manager.image_reader_writer_class())

    def _restoration(self, logits: torch.Tensor, properties: dict[str, Any]) -> Restoration | WholeRestoration:
        """Return what turns logits into mask (z, y, x) and probabilities (C, z, y, x) on the grid of the scan."""
        return restoration_of(logits, self.plans_manager, self.configuration_manager, self.label_manager, properties)

    def _internal_get_sliding_window_slicers(self, image_size: tuple[int, ...]) -> list[tuple[slice | int, ...]]:
        slicers: list[tuple[slice | int, ...]] = super()._internal_get_sliding_window_slicers(image_size)
        self.progress.steps(len(slicers) * len(self.list_of_parameters))
        return slicers

    @torch.inference_mode()
    def _internal_predict_sliding_window_return_logits(
        self, data: torch.Tensor, slicers: Sequence[Slicer], do_on_device: bool = True
    ) -> torch.Tensor:
        """Return the logits (K, *S) of a preprocessed scan (C, *S), in half precision.

        The steps are nnU-Net's, but the tiles go through the network in batches.

        Args:
            data: the scan, padded to the size of a tile.
            slicers: places of the tiles.
            do_on_device: keep scan and result on the GPU.

        Raises:
            RuntimeError: the logits overflow half precision, or the GPU has too little memory.
        """
        place = self.device if do_on_device else torch.device("cpu")
        patch = tuple(self.configuration_manager.patch_size)
        data = data.to(place)
        sums = torch.zeros((self.label_manager.num_segmentation_heads, *data.shape[1:]), dtype=torch.half, device=place)
        weights = torch.zeros(data.shape[1:], dtype=torch.half, device=place)
        gaussian = compute_gaussian(patch, sigma_scale=1 / 8, value_scaling_factor=10, device=place)

        def logits_of(tiles: torch.Tensor, images: int) -> torch.Tensor:
            axes = self.allowed_mirroring_axes if self.use_mirroring else None
            return mirrored_mean(self.network, tiles.to(self.device), axes or (), images)

        def add(slicer: Slicer, logits: torch.Tensor) -> None:
            sums[slicer] += logits.to(place) * gaussian
            weights[slicer[1:]] += gaussian
            self.progress.step()

        add_tiles(logits_of, data, slicers, images_a_pass(patch, self.device), add)
        result = sums.div_(weights)
        if any(bool(torch.isinf(values).any()) for values in result):  # class by class: a copy of each is made
            raise RuntimeError("the logits overflow half precision")
        return result
