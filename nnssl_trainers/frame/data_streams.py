"""The batch streams: cases of the fold, nnU-Net's batch generation, views of unlabelled patches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnssl.config import ConfigT, MethodConfig, hyper
from nnssl.data.boxes import LocatedPatches
from nnssl.data.cache import CaseCache
from nnssl.data.domains import Setting, domain_probabilities, domains_of, setting_tag
from nnssl.data.splits import FoldCases, LabelBudget, cases_of_run
from nnssl.data.streams import Index, IterationBatches, OrderedBatches
from nnssl.data.views import make_reproducible, two_views
from nnssl.errors import DataError, UsageError
from nnssl.host import augmentation_workers
from nnssl.names import UNLABELLED_SUFFIX
from nnssl.training import checkpoints
from nnssl_trainers.frame.augmentation import use_paper_augmentation
from nnssl_trainers.frame.run_loop import RunLoop

LOOK_BATCHES = 8  # of labelled patches without augmentation, before an iteration that looks at them


@dataclass(frozen=True)
class UnlabelledConfig(MethodConfig):
    """The setting of every method that uses unlabelled scans."""

    unlabelled_weight: float = hyper(
        1.0, "factor of every loss term on unlabelled patches; 0: all else runs, but only labels teach", low=0.0
    )


@dataclass(frozen=True)
class StrongViewConfig(UnlabelledConfig):
    """The setting of every method that learns from a strong view of the unlabelled patches."""

    strong_probability: float = hyper(
        0.5, "least probability of each intensity augmentation in the strong view", low=0.0, high=1.0
    )


class DataStreams(RunLoop[ConfigT]):
    """The part of the frame that provides batches; a batch depends only on seed, stream and iteration."""

    uses_unlabelled: ClassVar[bool] = True
    needs_boxes: ClassVar[bool] = False
    learns_from_strong_view: ClassVar[bool] = True
    cases: FoldCases | None = None
    cache_bytes: int = 0  # most memory of decoded cases
    _cache: CaseCache | None = None

    @property
    def strong_views(self) -> int:
        """Number of strong views of each unlabelled patch; none are made for a method that learns from none."""
        return int(self.learns_from_strong_view)

    @property
    def draws_unlabelled(self) -> bool:
        """Whether the training stream holds unlabelled patches now."""
        return self.uses_unlabelled

    @property
    def unlabelled_foreground(self) -> float:
        """Share of the unlabelled patches that is centred on the foreground of stored pseudo-labels, in [0, 1]."""
        return 0.0

    @property
    def strong_probability(self) -> float:
        """Least probability of each intensity augmentation in the strong view; 0 leaves nnU-Net's probabilities."""
        return self.config.strong_probability if isinstance(self.config, StrongViewConfig) else 0.0

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return the labelled and the validation cases of this fold under the run's label budget."""
        cases = self.fold_cases()
        return list(cases.labelled), list(cases.validation)

    def fold_cases(self) -> FoldCases:
        """Return the labelled, unlabelled and validation cases of this run."""
        if self.cases is None:
            folder = Path(self.preprocessed_dataset_folder_base)
            budget = LabelBudget.parse(self.settings.labelled) if self.settings.labelled else None
            tag = setting_tag(self.settings.setting)
            self.cases = cases_of_run(folder, self.dataset_json, self.fold, budget, tag)
        return self.cases

    def get_dataloaders(self) -> tuple[OrderedBatches, OrderedBatches]:
        """Return the ordered stream of training and validation batches, twice, because nnU-Net expects two loaders."""
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        scales, plan = self._get_deep_supervision_scales(), self.configuration_manager
        labels = {
            "foreground_labels": self.label_manager.foreground_labels,
            "regions": self.label_manager.foreground_regions if self.label_manager.has_regions else None,
            "ignore_label": self.label_manager.ignore_label,
        }
        training = make_reproducible(
            self.get_training_transforms(
                plan.patch_size,
                rotation,
                scales,
                mirror_axes,
                dummy_2d,
                use_mask_for_norm=plan.use_mask_for_norm,
                **labels,
            )
        )
        if self.config.augmentation == "paper":
            if self.needs_boxes:
                raise UsageError(
                    f"{type(self).__name__} needs nnU-Net's augmentation",
                    where="--set augmentation=paper",
                    why="the method needs each patch's place in its scan, and turns by 90° lose that place",
                    run="--set augmentation=nnunet",
                )
            use_paper_augmentation(training, plan.patch_size, plan.spacing)
        validating = self.get_validation_transforms(scales, **labels)
        labelled, validation = map(self._cached, self.get_tr_and_val_datasets())
        share = self.oversample_foreground_percent
        loaders = {
            "labelled": self._batch_maker(labelled, initial_patch_size, training, share),
            "validation": self._batch_maker(validation, plan.patch_size, validating, share),
        }
        if self.draws_unlabelled:
            views = two_views(training, self.strong_probability, self.strong_views)
            maker = LocatedPatches if self.needs_boxes else nnUNetDataLoader
            drawn, centred = self.dataset_to_draw(), self.unlabelled_foreground
            unlabelled = self._batch_maker(drawn, initial_patch_size, views, centred, maker)
            unlabelled.has_ignore = False  # nnU-Net would look for labelled voxels, and these scans have none
            loaders["unlabelled"] = unlabelled
            loaders["look"] = self._batch_maker(labelled, plan.patch_size, validating, 1.0)
        stream = OrderedBatches(
            IterationBatches(loaders, self.settings.seed),
            self._order(self.current_epoch, self.iteration),
            augmentation_workers(),
            pin_memory=self.device.type == "cuda",
        )
        return stream, stream

    def _batch_maker(
        self,
        dataset: Any,  # noqa: ANN401
        patch_size: Any,  # noqa: ANN401
        transforms: Any,  # noqa: ANN401
        foreground: float,
        maker: type[nnUNetDataLoader] = nnUNetDataLoader,
    ) -> nnUNetDataLoader:
        """Return a batch maker; under a setting of domains its batches draw all domains equally often."""
        balanced = bool(self.settings.setting)
        made = maker(
            dataset,
            self.batch_size,
            patch_size,
            self.configuration_manager.patch_size,
            self.label_manager,
            oversample_foreground_percent=foreground,
            sampling_probabilities=domain_probabilities(dataset.identifiers, domains_of(self.dataset_json))
            if balanced
            else None,
            transforms=transforms,
        )
        made.indices = np.asarray(made.indices)  # nnU-Net would copy the list for every batch
        return made

    def reopen_streams(self) -> None:
        """Open the streams anew, because what they hold has changed."""
        waited = self.dataloader_train.seconds_waited
        self.dataloader_train.close()
        rng = checkpoints.rng_state()
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        self.dataloader_train.seconds_waited = waited  # the epoch goes on
        checkpoints.set_rng_state(rng)

    def looks_before(self, iteration: int) -> bool:  # noqa: ARG002
        """Return whether batches of labelled patches without augmentation come before the batch of an iteration."""
        return False

    def dataset_to_draw(self) -> Any:  # noqa: ANN401 - nnU-Net's dataset class
        """Return the data set that unlabelled patches are drawn from; stored pseudo-labels may stand in it."""
        return self.unlabelled_dataset()

    def unlabelled_dataset(self) -> Any:  # noqa: ANN401 - nnU-Net's dataset class
        """Return the preprocessed unlabelled cases of this run.

        Raises:
            DataError: there are none, or some are not preprocessed.
        """
        cases, folder = self.fold_cases().unlabelled, Path(self.preprocessed_dataset_folder + UNLABELLED_SUFFIX)
        run = f"nnssl_plan_and_preprocess -d {self.plans_manager.dataset_name} -c {self.configuration_name}"
        setting = Setting.find(self.settings.setting)
        run += f" {setting.option} {setting.words}" if setting else ""
        run += (
            f" -labelled {self.settings.labelled}"
            if self.settings.labelled and not (setting and setting.protocol)
            else ""
        )
        if not cases:
            raise DataError(
                f"{type(self).__name__} needs unlabelled scans, and this fold has none",
                where=self.preprocessed_dataset_folder_base,
                why="imagesUn/ is empty or missing, and no label budget turns labelled scans into unlabelled ones",
                run=f"put scans into imagesUn/ and run: {run}; or train with -tr SupervisedTrainer",
            )
        there = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()  # listed once
        missing = [case for case in cases if f"{case}.pkl" not in there]
        if missing:
            raise DataError(
                f"{len(missing)} unlabelled case(s) are not preprocessed",
                where=folder,
                why=", ".join(missing[:5]),
                run=run,
            )
        return self._cached(self.dataset_class(str(folder), list(cases)))

    def _cached(self, dataset: Any) -> Any:  # noqa: ANN401 - nnU-Net's dataset class
        """Return the data set with the run's cache of decoded cases before its files."""
        if self._cache is None:
            self._cache = CaseCache(self.cache_bytes)
        return self._cache.over(dataset)

    def _order(self, first_epoch: int, first_iteration: int) -> Iterator[Index]:
        for epoch in range(first_epoch, self.num_epochs):
            start = max(self.settings.epoch_end(epoch - 1), first_iteration)
            for i in range(start, self.settings.epoch_end(epoch)):
                if self.looks_before(i):
                    yield from (("look", LOOK_BATCHES * i + j) for j in range(LOOK_BATCHES))
                yield "train", i
            first = epoch * self.num_val_iterations_per_epoch
            yield from (("validation", first + j) for j in range(self.num_val_iterations_per_epoch))
