"""A student that learns by gradient, and a teacher: the exponential moving average (EMA) of the student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from nnssl.config import hyper
from nnssl.ingredients.ema import ema_update, warmed_up_decay
from nnssl.ingredients.pseudo_labels import largest_component
from nnssl_trainers.frame.architecture import unwrap
from nnssl_trainers.frame.batch import as_list
from nnssl_trainers.frame.stages import StagedConfig, StagedTrainer
from nnssl_trainers.parts.lost_classes import without_classes


@dataclass(frozen=True)
class TeacherConfig(StagedConfig):
    """The settings of every method with an EMA teacher."""

    ema_decay: float = hyper(0.99, "weight of the old teacher in the moving average", "α", low=0.0, high=1.0)
    teacher_mode: str = hyper(
        "eval",
        "the teacher's mode: inference, training, or batch statistics without dropout",
        choices=("eval", "train", "bn_train_nodrop"),
    )
    deployed: str = hyper("teacher", "the network that is deployed", choices=("teacher", "student"))


TeacherConfigT = TypeVar("TeacherConfigT", bound=TeacherConfig)


def set_teacher_mode(teacher: nn.Module, mode: str) -> None:
    """Put a teacher into the mode `train`, `eval` or `bn_train_nodrop`, which uses batch statistics but no dropout."""
    teacher.train(mode != "eval")
    if mode == "bn_train_nodrop":
        for module in teacher.modules():
            if isinstance(module, _DropoutNd) or hasattr(module, "drop_path"):
                module.training = False


def copy_to_cpu_async(tensor: Tensor) -> Callable[[], Tensor]:
    """Start to copy a tensor to the CPU, and return a function that waits for the copy, but not for later GPU work."""
    if not tensor.is_cuda:
        return lambda: tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def wait() -> Tensor:
        done.synchronize()
        return host

    return wait


class TeacherStudentTrainer(StagedTrainer[TeacherConfigT]):
    """The frame of methods with an EMA teacher; the setting `deployed` can name the student instead of the teacher."""

    def initialize(self) -> None:
        """Build the student, and then a teacher with the same weights."""
        super().initialize()
        self.taught_voxels: Tensor | None = None  # pseudo-labelled voxels of each foreground class in this epoch
        self.lost_classes: list[bool] = []  # of each foreground class: the teacher labelled none in the last epoch
        self._taught_counts: list[int] = []  # voxels of each foreground class in the last epoch
        self.teacher: Any = self.new_network()
        self.teacher.load_state_dict(unwrap(self.network).state_dict())
        self.teacher.requires_grad_(False).eval()
        if self._do_i_compile():
            self.teacher = torch.compile(self.teacher)
        if self.is_ddp:
            self.teacher = self.distribute(self.teacher)

    def load_pretrained(self, file: str) -> None:
        """Load the weights of another training into student and teacher."""
        super().load_pretrained(file)
        unwrap(self.teacher).load_state_dict(unwrap(self.network).state_dict())

    @property
    def deployed(self) -> nn.Module:
        """The network that the setting `deployed` names; in the supervised stage and before it the student."""
        if self.config.deployed == "teacher" and self._second_stage:
            teacher: nn.Module = self.teacher
            return teacher
        student: nn.Module = self.network
        return student

    def set_training_mode(self) -> None:
        """Put the student into training mode, and the teacher into the mode that `teacher_mode` names."""
        super().set_training_mode()
        set_teacher_mode(self.teacher, self.config.teacher_mode)

    @property
    def labelling_networks(self) -> list[nn.Module]:
        """The teacher, which labels the unlabelled patches."""
        return [self.teacher]

    def begin_second_stage(self) -> None:
        """Begin the second stage; a teacher starts equal to a trained student."""
        super().begin_second_stage()
        if self.starts_trained:
            unwrap(self.teacher).load_state_dict(unwrap(self.network).state_dict())

    @property
    def teacher_decay(self) -> float:
        """Weight of the old teacher in this step; it rises first where the student started from random weights."""
        decay = self.config.ema_decay
        return decay if self.starts_trained else warmed_up_decay(self.iteration, decay)

    def follow_student(self) -> None:
        """Move the teacher towards the student."""
        ema_update(unwrap(self.teacher), unwrap(self.network), self.teacher_decay)

    def after_step(self) -> None:
        """Move the teacher towards the student."""
        self.follow_student()

    def predict_together(self, labelled: Tensor, unlabelled: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the student's outputs on labelled and unlabelled patches from one forward pass.

        Args:
            labelled: images (B, C_in, *S).
            unlabelled: images (B', C_in, *S).

        Returns:
            The logits for the labelled and for the unlabelled patches, each a list with the finest output first.
        """
        outputs = as_list(self.network(torch.cat([labelled, unlabelled])))
        count = len(labelled)
        return [part[:count] for part in outputs], [part[count:] for part in outputs]

    @torch.no_grad()
    def teach(self, image: Tensor) -> Tensor:
        """Return the teacher's class probabilities (B, C, *S) for an image (B, C_in, *S), without a graph."""
        return self.probabilities(as_list(self.teacher(image))[0])

    def pseudo_labels(self, probs: Tensor, mask: Tensor, largest_only: bool) -> Callable[[], Tensor]:
        """Start to copy the teacher's labels to the CPU, and return a function that gives the cleaned labels.

        The returned function finds the components on the CPU. GPU work that the caller starts before the call runs at
        the same time.

        Args:
            probs: the teacher's probabilities (B, C, *S) for unlabelled patches, see `teach`.
            mask: (B, 1, *S), False = the voxel becomes background, for example padding.
            largest_only: keep only the largest component of each class or region.

        Returns:
            A function without arguments; its result is a LongTensor (B, 1, *S), or (B, R, *S) for regions.
        """
        regions = self.label_manager.has_regions
        labels = probs >= 0.5 if regions else probs.max(1, keepdim=True).indices
        wait_for_copy, classes = copy_to_cpu_async((labels * mask).to(torch.uint8)), probs.shape[1]

        def wait() -> Tensor:
            found = wait_for_copy()
            if largest_only and regions:
                found = largest_component(found.flatten(0, 1), 2).view_as(found)
            elif largest_only:
                found = largest_component(found[:, 0], classes)[:, None]
            self.count_taught_voxels(found)
            found = found.pin_memory() if self.device.type == "cuda" else found
            return found.to(self.device, non_blocking=True).long()

        return wait

    def count_taught_voxels(self, labels: Tensor) -> None:
        """Count pseudo-labels (B, 1, *S), or regions (B, R, *S), without waiting for the device."""
        if self.label_manager.has_regions:
            voxels = labels.flatten(2).sum((0, 2))
        else:
            voxels = torch.stack([(labels == k).sum() for k in range(1, self.label_manager.num_segmentation_heads)])
        self.taught_voxels = voxels if self.taught_voxels is None else self.taught_voxels + voxels

    def without_lost_classes(self, logits: Tensor) -> Tensor:
        """Return logits (B, C, *S) of unlabelled patches that no loss can push away from a class of `lost_classes`.

        The logit of such a class is a constant far below the others, so that it gets no gradient.
        """
        return without_classes(logits, self.lost_classes, self.label_manager.has_regions)

    def note_lost_classes(self) -> None:
        """Find the classes that the teacher labelled nowhere since the last call."""
        voxels, self.taught_voxels = self.taught_voxels, None
        self._taught_counts = [] if voxels is None else voxels.tolist()
        self.lost_classes = [not count for count in self._taught_counts]

    def _finish_epoch(self, terms: dict[str, float], speed: dict[str, float]) -> None:
        self.note_lost_classes()
        super()._finish_epoch(terms, speed)

    def epoch_values(self) -> dict[str, float]:
        """Return the share of each foreground class among the pseudo-labelled foreground voxels of the epoch."""
        total = sum(self._taught_counts)
        counts = enumerate(self._taught_counts, start=1) if total else ()
        return {**super().epoch_values(), **{f"pseudo_share_{k}": count / total for k, count in counts}}

    def epoch_warnings(self) -> list[str]:
        """Return the general warnings, and one that names the classes that the teacher never labelled in this epoch."""
        general = super().epoch_warnings()
        if not any(self.lost_classes):
            return general
        lost = zip(self.structure_names(), self.lost_classes, strict=True)
        missing = ", ".join(name for name, is_lost in lost if is_lost)
        hint = "unlabelled scans cannot teach what the teacher does not label; train longer (-num_iterations)"
        return [*general, f"the teacher has labelled no voxel of this epoch as {missing}: {hint}"]

    def state(self) -> dict[str, Any]:
        """Return the state, including the teacher."""
        return {
            **super().state(),
            "teacher": unwrap(self.teacher).state_dict(),
            "lost_classes": self.lost_classes,
            "taught_voxels": None if self.taught_voxels is None else self.taught_voxels.tolist(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state that includes a teacher."""
        super().load_state(state)
        unwrap(self.teacher).load_state_dict(state["teacher"])
        self.lost_classes = state.get("lost_classes", [])
        voxels = state.get("taught_voxels")
        self.taught_voxels = None if voxels is None else torch.tensor(voxels, device=self.device)
