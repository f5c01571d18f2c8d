"""Several trained models as one: the mean of their probabilities on the grid of the scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from typing_extensions import Self

from nnssl.data.scans import ScanFacts
from nnssl.errors import DataError
from nnssl.evaluation.postprocessing import postprocess
from nnssl.inference.export import write_mask, write_probabilities
from nnssl.inference.images import Array, load_image
from nnssl.inference.inputs import ScanToPredict
from nnssl.inference.models import ChosenModel
from nnssl.inference.pipeline import run_overlapped
from nnssl.inference.postprocessing import Choice, shared_choice
from nnssl.inference.predictor import ImageT, Predictor, Prepared
from nnssl.inference.progress import Progress, ProgressStyle


class Ensemble:
    """Several trained models, loaded once, that predict as one.

    The probabilities of the folds of a model are averaged, and then those of the models: each model counts the same,
    however many folds it has. Models may differ in configuration, plans and method. The masks are post-processed where
    all models have the same stored decision.

    Args:
        predictors: at least two, of models that `find_ensemble` has found.
    """

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        self.predictors = list(predictors)
        choices = [each.postprocessing for each in self.predictors]
        self.postprocessing: Choice = shared_choice(choices)

    @classmethod
    def from_models(cls, models: Sequence[ChosenModel], **settings: Any) -> Self:  # noqa: ANN401
        """Return the ensemble of models that `find_ensemble` has found.

        Args:
            models: at least two, with their folds.
            settings: those of `Predictor.from_folder` without the folds.

        Raises:
            UsageError: a model is the second stage of a cascade.
            DataError: a model folder is damaged.
            EnvironmentProblem: a checkpoint is damaged or does not fit the plans, or this machine has no such device.
        """
        return cls([Predictor.from_folder(each.folder, folds=each.folds, **settings) for each in models])

    @property
    def first(self) -> Predictor:
        """The first model, for what all share: labels, reader, channels, device."""
        return self.predictors[0]

    @property
    def models(self) -> list[Predictor]:
        """All models."""
        return self.predictors

    def check_cases(self, cases: Sequence[ScanToPredict]) -> list[ScanFacts]:
        """Read every scan once, and return the facts; a `DataError` lists all scans that the models cannot take."""
        return self.first.check_cases(cases)

    def predict_cases(
        self,
        cases: Sequence[ScanToPredict],
        *,
        save_probabilities: bool = False,
        readers: int = 1,
        writers: int = 1,
        progress: ProgressStyle = "off",
    ) -> None:
        """Predict scans on disk; arguments and errors are those of `Predictor.predict_cases`."""

        def prepare(case: ScanToPredict) -> list[Prepared]:
            return [predictor.prepare(case) for predictor in self.predictors]

        def infer(case: ScanToPredict, prepared: list[Prepared]) -> Array:
            return self._mean(case.name, prepared)

        def export(case: ScanToPredict, prepared: list[Prepared], probs: Array) -> None:
            properties = prepared[0][1]
            if save_probabilities:
                write_probabilities(case.stem, probs, properties)
            write_mask(case.mask, self._mask(probs), properties, self.first.plans_manager.image_reader_writer_class())

        with Progress(len(cases), progress) as bar:
            for case in run_overlapped(cases, prepare, infer, export, readers=readers, writers=writers):
                bar.finished(case.name)

    def predict_image(self, image: ImageT, spacing_mm: Sequence[float] | None = None) -> ImageT:
        """Return the mask of one image in memory; arguments and errors are those of `Predictor.predict_image`."""
        loaded = load_image(image, spacing_mm, reorient=self.first.reorients)
        restored: ImageT = loaded.restore(
            self._mask(self._mean("image", [each.prepare_loaded(loaded) for each in self.predictors]))
        )
        return restored

    def _mean(self, name: str, prepared: Sequence[Prepared]) -> Array:
        """Return the mean probabilities (C, z, y, x) of all models on the grid of the scan, float32."""
        total: Array | None = None
        for predictor, each in zip(self.predictors, prepared, strict=True):
            probs = predictor.mean_probabilities(name, each)
            if total is not None and total.shape != probs.shape:
                raise DataError("the models give masks of several shapes", where=name, why=f"{total.shape[1:]}")
            total = probs if total is None else total + probs
        assert total is not None
        mean: Array = total / np.float32(len(self.predictors))
        return mean

    def _mask(self, probs: Array) -> Array:
        """Return the post-processed mask (z, y, x) of probabilities (C, z, y, x) of classes or regions."""
        found = self.first.label_manager.convert_probabilities_to_segmentation(torch.from_numpy(probs))
        # nnU-Net's own masks have these types
        dtype = np.uint8 if len(self.first.label_manager.foreground_labels) < 255 else np.uint16
        return postprocess(found.cpu().numpy().astype(dtype), self.postprocessing.decision)
