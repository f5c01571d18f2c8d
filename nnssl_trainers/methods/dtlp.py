"""DTLPTrainer: Li, Zhou, Ma, Zhao, Yang, Diverse Teaching and Label Propagation, arXiv 2508.08549, 2025.

One encoder has three decoders: ξ denoises label maps, ψ learns the labels, θ learns from both and is deployed. θ' is
the moving average of encoder and θ. A step uses labelled patches (x_l, y_l) and unlabelled patches x_u:

1. θ ← 0.99·θ + 0.01·(ξ + ψ)/2.
2. L_deno: Dice + CE of ξ(x_l, y_t), y_t = √ᾱ_t·y_0 + √(1 − ᾱ_t)·ε, t ~ U{0..999}, y_0 = ±1             (eq. 1-2)
   L_diff: Dice + CE of ψ(x_l), in which a class that ξ learns badly or forgets weighs more              (eq. 3-6)
3. Teachers, without a graph: p_1 = ½·[blur(gumbel(ξ's DDIM sample)) + softmax ψ(x_u)], p_2 = softmax θ'(x_u),
   p^t = ω·p_1 + (1 − ω)·p_2 with ω = e^(−H_1)/(e^(−H_1) + e^(−H_2)); ŷ = argmax p^t                    (eq. 7-10)
4. On θ: L_mix, Dice + CE of x_u with a box of another patch, labelled or not, against mixed labels     (eq. 12-13)
   L_mic, Dice + CE of x_u with masked blocks against ŷ                                                 (eq. 14-15)
   L_rec = mean of ‖z − z'‖²/‖z'‖², z: logits of masked patches, z': of θ' for whole ones                  (eq. 16)
   L_kd, Dice distance of θ(x_u) to ξ's sample and to ψ(x_u)                                               (eq. 17)
5. L_corr: Dice + CE of the logits of x_u and x_l, remixed by the correlation of encoder features       (eq. 18-21)
6. L = L_deno + L_diff + r(t)·(L_mix + α·L_mic + β·L_kd + γ·L_rec + η·L_corr^u) + η·L_corr^l with
   r(t) = exp(−5(1 − t/T)²) (eq. 22); after the step θ' ← 0.99·θ' + 0.01·θ.

Departures from the paper, undone by `preset=paper`:
- The supervised stage trains encoder and ψ on the labels; then θ ← ψ and ξ ← ψ. In the paper all weights start random.
- θ also has half of nnU-Net's loss of x_l; the paper gives θ no labels but those in mixes. T is 0.3 of the steps.
- The teachers see the weak view. A term with a weight below 0.01 is left out; its passes cost nothing.
- Network, optimiser and schedule are nnU-Net's, with deep supervision in L_deno, L_diff, L_u, L_mix and L_mic.
Choices where the paper is silent or contradicts itself; docs/methods/dtlp.md has the whole list:
- L_u (eq. 11) is not in eq. 22: weight 0. Eq. 12 prints the teacher's label for both partners: `cutmix_labels=teacher`.
- L_rec is on logits in the text, on features in the conclusion: `rec_space`. θ-aggregation, ramp and the form of the
  weights in L_diff are those of A&D's code (`difficulty_form`). Eq. 18 prints no axis, and √D outside: `correlation`.
- `teachers=first` has no L_rec, `teachers=second` no L_kd.
- Teachers neither drop values nor change running statistics. Padding and the ignore label do not count.
- Each region is a problem with two classes; all regions share Dice sums and weights.

`preset=adnd`: A&D (Wang and Li, NeurIPS 2023) is L_deno, L_diff and L_u with ŷ = argmax p_1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnssl.config import Value, redefine
from nnssl.ingredients.schedules import gaussian_rampup
from nnssl.ingredients.thresholds import DifficultyWeights
from nnssl.networks.denoising import encode
from nnssl_trainers.frame.architecture import unwrap
from nnssl_trainers.frame.batch import Batch, full_size_target
from nnssl_trainers.frame.data_streams import StrongViewConfig
from nnssl_trainers.frame.stages import PAPER_CLOCK
from nnssl_trainers.frame.teacher_student import TeacherConfig, TeacherStudentTrainer
from nnssl_trainers.parts.dice_ce_loss import DiceCELoss
from nnssl_trainers.parts.dtlp_branches import (
    DTLPBranches,
    FeatureKeeper,
    has_batch_norm,
    predict_views,
    with_decoder,
)
from nnssl_trainers.parts.dtlp_lessons import Teachers
from nnssl_trainers.parts.dtlp_settings import DTLP_ADND, DTLP_PAPER, DTLPSettings, with_table_1
from nnssl_trainers.parts.dtlp_terms import DTLPTerms
from nnssl_trainers.parts.masked_mixing import LabelledPatches, known_patches, mask_blocks, mix_with_partners
from nnssl_trainers.parts.quiet_passes import quiet_passes


@dataclass(frozen=True)
class DTLPConfig(StrongViewConfig, TeacherConfig, DTLPSettings):
    """The settings of DTLP-Net."""

    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {
        "paper": PAPER_CLOCK | DTLP_PAPER,
        "adnd": PAPER_CLOCK | DTLP_ADND,
    }
    deployed: str = redefine(TeacherConfig, "deployed", "theta", choices=("theta", "psi", "teacher"))
    teacher_mode: str = redefine(TeacherConfig, "teacher_mode", "bn_train_nodrop")
    strong_probability: float = redefine(StrongViewConfig, "strong_probability", 0.0)


class DTLPTrainer(TeacherStudentTrainer[DTLPConfig]):
    """DTLP-Net; the docstring of this module describes the algorithm and its departures from the paper."""

    config_class = DTLPConfig
    psi_network: nn.Module | None = None

    def initialize(self) -> None:
        """Build encoder, θ and its moving average, then the other decoders, which the same optimiser trains."""
        self.config = c = with_table_1(self.config, Path(self.preprocessed_dataset_folder_base))
        super().initialize()
        network: Any = unwrap(self.network)
        regions, heads = self.label_manager.has_regions, self.label_manager.num_segmentation_heads
        decoders: Any = [self.new_network().decoder for _ in range(2)]
        self.branches = DTLPBranches(network, decoders, heads, c).to(self.device)
        self.train_with_student(self.branches)
        self.features = FeatureKeeper(network.encoder)
        self.dice_ce = DiceCELoss(tuple(getattr(self.loss, "weight_factors", (1.0,))), regions, c.difficulty_form)
        mode: Any = "default" if c.difficulty == "off" else c.difficulty
        self.difficulty = DifficultyWeights(2 if regions else heads, mode=mode).to(self.device)
        self.together = not has_batch_norm(network)
        self.terms = DTLPTerms(c, self.branches, self.dice_ce, self.difficulty, regions)
        self.teachers = Teachers(c, self.branches, network, unwrap(self.teacher), regions)
        if c.deployed == "psi":
            self.psi_network = with_decoder(network, self.new_network(), self.branches.psi)

    @property
    def deployed(self) -> nn.Module:
        """The network that the setting `deployed` names; until the method begins the encoder with θ."""
        psi = self.psi_network if self.method_begin is not None else None
        return super().deployed if psi is None else psi

    def set_training_mode(self) -> None:
        """Put all networks into training mode, and the teacher into its own mode."""
        super().set_training_mode()
        self.branches.train()

    def before_step(self) -> None:
        """When the method begins after a supervised stage, start ψ, ξ and θ as the settings say."""
        super().before_step()
        if self.method_begin != self.iteration or not (self.iteration or self.settings.start_from):
            return
        network, c = unwrap(self.network), self.config
        self.branches.start_from(
            network, c.xi_start == "psi", self.new_network() if c.theta_start == "random" else None
        )
        if c.theta_start == "random":
            unwrap(self.teacher).load_state_dict(network.state_dict())

    def losses_of_step(self, batch: Batch) -> dict[str, Tensor]:
        """Move θ towards the mean of ξ and ψ, and return the losses of the stage."""
        if self.method_begin is not None and self.config.theta_aggregation < 1:
            self.branches.aggregate(unwrap(self.network), self.config.theta_aggregation)
        return super().losses_of_step(batch)

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted terms of eq. 22, without those whose weight is below `least_weight` now."""
        c, (weak, strong, scan) = self.config, batch.unlabelled
        ramp = gaussian_rampup(batch.iteration, c.rampup_share * self.method_iterations)
        weights = {name: ramp * w for name, w in c.unlabelled_weights().items() if ramp * w >= c.least_weight}
        known = known_patches(batch.image_l, full_size_target(batch), self.label_manager)
        networks = [unwrap(self.network), self.branches, unwrap(self.teacher)] if c.quiet_passes else []
        with quiet_passes(networks):
            lesson = self.teachers.teach(batch.image_l, weak if c.teacher_view == "weak" else strong, weights)
        views: dict[str, Tensor] = {"labelled": batch.image_l} if c.theta_labelled_weight else {}
        if weights.keys() & {"kd", "correlation", "pseudo"}:
            views["whole"] = strong
        guessed = mixed = LabelledPatches(strong, known.labels[:0] if lesson.labels is None else lesson.labels, scan)
        if "mix" in weights:
            truth = known if lesson.labels_l is None else LabelledPatches(known.image, lesson.labels_l, known.mask)
            mixed = mix_with_partners(truth, guessed)
            views["mix"] = mixed.image
        if weights.keys() & {"mic", "rec"}:
            views["masked"] = mask_blocks(strong, float(c.mask_ratio or 0))
        if "rec" in weights:
            views["masked_l"] = mask_blocks(batch.image_l, float(c.mask_ratio or 0))
        outputs, features = predict_views(self.network, self.features, views, self.together)
        own = features.get("labelled") or encode(unwrap(self.network), known.image)
        terms = self.terms.labelled(unwrap(self.network), known, own)
        if c.theta_labelled_weight:
            terms["labelled_theta"] = c.theta_labelled_weight * self.supervised_loss(outputs["labelled"], batch)
        learned = {"pseudo": ("whole", guessed), "mix": ("mix", mixed), "mic": ("masked", guessed)}
        losses = {
            name: self.dice_ce(outputs[view], on.labels, on.mask)
            for name, (view, on) in learned.items()
            if name in weights
        }
        if "kd" in weights:
            losses["kd"] = self.terms.distillation(outputs["whole"][0], lesson, scan)
        if "rec" in weights:
            pairs = [(outputs[view][0], features[view][-1]) for view in ("masked_l", "masked")]
            logits, deepest = (torch.cat(each) for each in zip(*pairs, strict=True))
            inside = torch.cat([torch.ones_like(known.mask), scan])
            losses["rec"] = self.terms.reconstruction(logits, deepest, lesson, inside)
        if "correlation" in weights:
            losses["correlation"] = self.terms.correlation(features["whole"], outputs["whole"][0], guessed)
        return terms | {name: c.unlabelled_weight * weights[name] * loss for name, loss in losses.items()}

    def state(self) -> dict[str, Any]:
        """Return the state, including the other decoders and the weights of the classes."""
        parts = {"branches": self.branches, "difficulty": self.difficulty}
        return {**super().state(), **{name: part.state_dict() for name, part in parts.items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state that includes the other decoders and the weights of the classes."""
        super().load_state(state)
        self.branches.load_state_dict(state["branches"])
        self.difficulty.load_state_dict(state["difficulty"])
