"""What every method stands on: networks, streams of batches, and one optimiser step.

A method subclasses `SemiSupervisedTrainer` (or `TeacherStudentTrainer`), names its config, and implements
`training_losses`. nnU-Net's trainer keeps the supervised loss, the optimiser, the augmentations and the architecture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnssl.data.boxes import LocatedPatches
from nnssl.data.raw import patient_of
from nnssl.data.splits import FoldCases, LabelBudget, fold_cases, read_splits
from nnssl.data.streams import Index, IterationBatches, OrderedBatches
from nnssl.data.views import make_reproducible, two_views
from nnssl.errors import DataError, EnvironmentProblem
from nnssl.training import checkpoints
from nnssl_trainers.frame.run_loop import Run, unwrapped


@dataclass(frozen=True)
class Batch:
    """One iteration's patches on the device; `_l` labelled, `_u` unlabelled, `_w`/`_s` weak and strong view.

    Attributes:
        image_l: (B, C, *S).
        target_l: labels (B, 1, *S), or the list of them at the sizes of the deep supervision outputs.
        image_u_w: (B, C, *S), None for methods without unlabelled data.
        image_u_s: the same patches and geometry with intensity augmentations.
        mask_u: (B, 1, *S), True = scan, False = padding.
        iteration: number of optimiser steps before this one.
        box_u: (B, n, 2), see `LocatedPatches`, for methods that set `needs_boxes`, None for others.
    """

    image_l: Tensor
    target_l: Tensor | list[Tensor]
    image_u_w: Tensor | None
    image_u_s: Tensor | None
    mask_u: Tensor | None
    iteration: int
    box_u: Tensor | None = None

    @property
    def unlabelled(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weak view, strong view and mask, for methods that have them."""
        assert self.image_u_w is not None
        assert self.image_u_s is not None
        assert self.mask_u is not None
        return self.image_u_w, self.image_u_s, self.mask_u


def full_size_target(batch: Batch) -> Tensor:
    """Return the labels (B, 1 or R, *S) at the size of the images."""
    return batch.target_l[0] if isinstance(batch.target_l, list) else batch.target_l


def as_list(outputs: Any) -> list[Tensor]:  # noqa: ANN401 - a tensor, or those of deep supervision
    """Return a network's outputs as a list, finest first."""
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two halves of a batch; a single sample is both of them, the odd one of several is left out."""
    count = max(1, len(x) // 2)
    return x[:count], x[-count:]


class SemiSupervisedTrainer(Run):
    """Base of all methods; see the module's docstring."""

    uses_unlabelled: ClassVar[bool] = True
    needs_boxes: ClassVar[bool] = False
    unused_heads: ClassVar[bool] = False  # outputs without a loss, which distributed training has to look for
    strong_probability: ClassVar[float] = 0.5
    cases: FoldCases | None = None

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted loss terms of one step (0-d tensors); their sum is minimised."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Do what follows an optimiser step, an EMA update for instance."""

    # ------------------------------------------------------------------ networks

    def initialize(self) -> None:
        """Build network, optimiser and loss from the plans, seeded."""
        if self.was_initialized:
            raise RuntimeError("initialize was called twice")
        self._set_batch_size_and_oversample()
        self.num_input_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        torch.manual_seed(self.settings.seed)
        self.network = self.new_network()
        if self._do_i_compile():
            self.network = torch.compile(self.network)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        if self.is_ddp:
            self.network = self.distributed(self.network)
        self.loss = self._build_loss()
        self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        self.was_initialized = True

    def distributed(self, network: nn.Module) -> DistributedDataParallel:
        """Return the network shared among the processes; batch normalisation sees all of them on CUDA."""
        cuda = self.device.type == "cuda"
        if cuda:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        devices = [self.local_rank] if cuda else None
        return DistributedDataParallel(network, devices, find_unused_parameters=self.unused_heads)

    def new_network(self) -> nn.Module:
        """Return a freshly initialised network of the plans, on the device."""
        network: nn.Module = self.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        )
        return network.to(self.device)

    def load_pretrained(self, file: str) -> None:
        """Start from the weights of another training; the segmentation layers stay as they are, as in nnU-Net.

        Raises:
            EnvironmentProblem: the file cannot be read, or its network differs from the plans'.
        """
        self.initialize()
        theirs = checkpoints.load(Path(file)).get("network_weights", {})
        ours = unwrapped(self.network).state_dict()
        heads = (".seg_layers.", "decoder.head.")
        wanted = [name for name in ours if not any(head in name for head in heads)]
        wrong = [name for name in wanted if name not in theirs or theirs[name].shape != ours[name].shape]
        if wrong:
            raise EnvironmentProblem(
                "these weights do not fit the network of the plans",
                where=file,
                why=f"{len(wrong)} of {len(wanted)} tensors are missing or of other shape, {wrong[0]} first",
            )
        unwrapped(self.network).load_state_dict({**ours, **{name: theirs[name] for name in wanted}})

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """Return nnU-Net's optimiser, and its polynomial schedule counted in iterations."""
        optimizer, _ = super().configure_optimizers()
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.settings.num_iterations)

    # ------------------------------------------------------------------ data

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return the labelled and the validation cases of this fold under the run's label budget."""
        cases = self.fold_cases()
        return list(cases.labelled), list(cases.validation)

    def fold_cases(self) -> FoldCases:
        """Return the labelled, unlabelled and validation cases of this run."""
        if self.cases is None:
            splits = read_splits(Path(self.preprocessed_dataset_folder_base))
            named = {case for split in splits for key in ("train", "val") for case in split[key]}
            patients = {case: patient_of(case, self.dataset_json) for case in named}
            budget = LabelBudget.parse(self.settings.labelled) if self.settings.labelled else None
            self.cases = fold_cases(splits, self.fold, budget, patients)
        return self.cases

    def get_dataloaders(self) -> tuple[OrderedBatches, OrderedBatches]:
        """Return one ordered stream that gives the training and the validation batches in turn (twice the same)."""
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
        validating = self.get_validation_transforms(scales, **labels)
        labelled, validation = self.get_tr_and_val_datasets()
        share = self.oversample_foreground_percent
        loaders = {
            "labelled": self._batch_maker(labelled, initial_patch_size, training, share),
            "validation": self._batch_maker(validation, plan.patch_size, validating, share),
        }
        if self.uses_unlabelled:
            views = two_views(training, self.strong_probability)
            maker = LocatedPatches if self.needs_boxes else nnUNetDataLoader
            loaders["unlabelled"] = self._batch_maker(self._unlabelled_dataset(), initial_patch_size, views, 0.0, maker)
            loaders["unlabelled"].has_ignore = False  # ignored voxels are a matter of labels
        stream = OrderedBatches(
            IterationBatches(loaders, self.settings.seed, self.local_rank),
            self._order(self.current_epoch, self.iteration),
            get_allowed_n_proc_DA(),
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
        return maker(
            dataset,
            self.batch_size,
            patch_size,
            self.configuration_manager.patch_size,
            self.label_manager,
            oversample_foreground_percent=foreground,
            transforms=transforms,
        )

    def _unlabelled_dataset(self) -> Any:  # noqa: ANN401 - nnU-Net's dataset class
        cases, folder = self.fold_cases().unlabelled, Path(f"{self.preprocessed_dataset_folder}_unlabelled")
        run = f"nnssl_plan_and_preprocess -d {self.plans_manager.dataset_name} -c {self.configuration_name}"
        run += f" -labelled {self.settings.labelled}" if self.settings.labelled else ""
        if not cases:
            raise DataError(
                f"{type(self).__name__} needs unlabelled scans, and this fold has none",
                where=self.preprocessed_dataset_folder_base,
                why="imagesUn/ is empty or missing, and no label budget turns labelled scans into unlabelled ones",
                run=f"put scans into imagesUn/ and run: {run}; or train with -tr SupervisedTrainer",
            )
        missing = [case for case in cases if not (folder / f"{case}.pkl").is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} unlabelled case(s) are not preprocessed",
                where=folder,
                why=", ".join(missing[:5]),
                run=run,
            )
        return self.dataset_class(str(folder), list(cases))

    def _order(self, first_epoch: int, first_iteration: int) -> Iterator[Index]:
        for epoch in range(first_epoch, self.num_epochs):
            start = max(self.settings.epoch_end(epoch - 1), first_iteration)
            yield from (("train", i) for i in range(start, self.settings.epoch_end(epoch)))
            first = epoch * self.num_val_iterations_per_epoch
            yield from (("validation", first + j) for j in range(self.num_val_iterations_per_epoch))

    # ------------------------------------------------------------------ one step

    def train_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Do one optimiser step on the batch of this iteration; returns the loss without waiting for the device."""
        ready = self._on_device(batch)
        self.lr_scheduler.step(self.iteration)
        for _, optimizer in self.trained:
            optimizer.zero_grad(set_to_none=True)
        with self.precision():
            terms = self.training_losses(ready)
            loss = torch.stack(list(terms.values())).sum()
        self._optimise(loss)
        self.iteration += 1
        self.after_step()
        self.add_terms({name: value.detach() for name, value in terms.items()})
        return {"loss": loss.detach()}

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Return nnU-Net's autocast, fp16 on CUDA alone, or bfloat16 on any device where the run asks for it."""
        if self.settings.bf16:
            return torch.autocast(self.device.type, torch.bfloat16)
        return torch.autocast("cuda") if self.device.type == "cuda" else contextlib.nullcontext()

    def _optimise(self, loss: Tensor) -> None:
        """Do backward, clip the gradient norm of each optimiser's parameters to 12 as nnU-Net does, and step."""
        scaler = self.grad_scaler
        (loss if scaler is None else scaler.scale(loss)).backward()
        for _, optimizer in self.trained:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 12)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
        if scaler is not None:
            scaler.update()

    def supervised_loss(self, outputs: list[Tensor], batch: Batch) -> Tensor:
        """Return nnU-Net's Dice and cross-entropy loss, with deep supervision where the network has it."""
        outputs = [logits.float() for logits in outputs]  # nnU-Net's Dice adds up in the precision that it is given
        target = batch.target_l
        if isinstance(target, list) and len(outputs) == 1 < len(target):
            return self.loss.loss(outputs[0], target[0])
        return self.loss(outputs if isinstance(target, list) else outputs[0], target)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return class probabilities (B, C, *S) in fp32: softmax, or sigmoid where labels are regions."""
        return torch.sigmoid(logits.float()) if self.label_manager.has_regions else torch.softmax(logits.float(), 1)

    def _on_device(self, batch: dict[str, Any]) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, non_blocking=True)

        target = batch["labelled"]["target"]
        weak = strong = mask = boxes = None
        if "unlabelled" in batch:
            boxes = move(batch["unlabelled"]["boxes"]) if self.needs_boxes else None
            weak, strong = move(batch["unlabelled"]["data"]).chunk(2, dim=1)
            mask = move(batch["unlabelled"]["target"]) >= 0
        return Batch(
            image_l=move(batch["labelled"]["data"]),
            target_l=[move(part) for part in target] if isinstance(target, list) else move(target),
            image_u_w=weak,
            image_u_s=strong,
            mask_u=mask,
            iteration=self.iteration,
            box_u=boxes,
        )
