"""One optimiser step: from a batch of the streams to the new weights."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from nnssl.config import ConfigT
from nnssl_trainers.frame.batch import Batch
from nnssl_trainers.frame.data_streams import DataStreams
from nnssl_trainers.parts.shared_passes import average_gradients


class TrainingStep(DataStreams[ConfigT]):
    """The part of the frame that does an optimiser step: the method's losses, precision, gradient clipping."""

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted loss terms of one step by name (0-d tensors); the step minimises their sum."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Do the work that follows an optimiser step, for example an update of the teacher."""

    def losses_of_step(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms that this step minimises; a run in stages chooses them by its stage."""
        return self.training_losses(batch)

    def finish_step(self) -> None:
        """Do the work after an optimiser step; a run in stages chooses it by its stage."""
        self.after_step()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Do one optimiser step, and return the loss (0-d) without waiting for the device.

        Args:
            batch: the batch of this iteration, as the streams give it.
        """
        ready = self._move_to_device(batch)
        self.lr_scheduler.step(self.iteration)
        for _, optimizer in self.trained:
            optimizer.zero_grad(set_to_none=True)
        with self.precision():
            terms = self.losses_of_step(ready)
            loss = torch.stack(list(terms.values())).sum()
        self._optimise(loss)
        self.iteration += 1
        self.finish_step()
        self.add_terms({name: value.detach() for name, value in terms.items()})
        return {"loss": loss.detach()}

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Return the autocast of a step: nnU-Net's fp16 on CUDA, bfloat16 on any device with the setting `bf16`."""
        if self.settings.bf16:
            return torch.autocast(self.device.type, torch.bfloat16)
        return torch.autocast("cuda") if self.device.type == "cuda" else contextlib.nullcontext()

    def _optimise(self, loss: Tensor) -> None:
        """Compute the gradients, clip their norm to 12 for each optimiser as nnU-Net does, and update the weights."""
        scaler = self.grad_scaler
        (loss if scaler is None else scaler.scale(loss)).backward()
        if self.is_ddp:
            average_gradients(p for _, optimizer in self.trained for p in _parameters(optimizer))
        for _, optimizer in self.trained:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(_parameters(optimizer), 12)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
        if scaler is not None:
            scaler.update()

    def supervised_loss(self, outputs: list[Tensor], batch: Batch) -> Tensor:
        """Return nnU-Net's Dice and cross-entropy loss (0-d), with deep supervision where the network has it.

        Args:
            outputs: logits (B, C, *S_i), the finest first; the gradient goes to them.
            batch: the batch; its labels are the targets.
        """
        outputs = [logits.float() for logits in outputs]  # nnU-Net's Dice sums in the precision of the logits
        target = batch.target_l
        if isinstance(target, list) and len(outputs) == 1 < len(target):
            return self.loss.loss(outputs[0], target[0])
        return self.loss(outputs if isinstance(target, list) else outputs[0], target)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return class probabilities (B, C, *S) in fp32: the softmax, or the sigmoid where labels are regions."""
        return torch.sigmoid(logits.float()) if self.label_manager.has_regions else torch.softmax(logits.float(), 1)

    def _move_to_device(self, batch: dict[str, Any]) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, non_blocking=True)

        target = batch["labelled"]["target"]
        weak = strong = mask = boxes = stored = None
        more: list[Tensor] = []
        if "unlabelled" in batch:
            boxes = move(batch["unlabelled"]["boxes"]) if self.needs_boxes else None
            weak, *more = move(batch["unlabelled"]["data"]).chunk(1 + self.strong_views, dim=1)
            strong = more.pop(0) if more else None
            stored = move(batch["unlabelled"]["target"])
            mask = stored >= 0
        return Batch(
            image_l=move(batch["labelled"]["data"]),
            target_l=[move(part) for part in target] if isinstance(target, list) else move(target),
            image_u_w=weak,
            image_u_s=strong,
            mask_u=mask,
            iteration=self.iteration,
            box_u=boxes,
            more_strong=tuple(more),
            target_u=stored,
        )


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
