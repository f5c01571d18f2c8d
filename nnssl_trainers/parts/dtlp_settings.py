"""The settings of DTLP-Net, its presets, and the values that the paper gives for each of its data sets."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from nnssl.config import MethodConfig, Value, hyper
from nnssl.data.splits import read_splits

# Table I of the paper: mask ratio, weights of L_mic (α), L_kd (β), L_rec (γ) and L_corr (η), first learning rate.
COLUMNS = ("mask_ratio", "mic_weight", "kd_weight", "rec_weight", "correlation_weight", "learning_rate")
TABLE_1 = {
    "la": (0.7, 2.0, 0.1, 0.2, 1.2, 1e-2),
    "synapse": (0.5, 0.1, 0.2, 0.5, 1.0, 3e-2),
    "amos": (0.5, 0.1, 0.2, 0.5, 1.3, 3e-2),
    "mmwhs": (0.5, 1.0, 0.1, 0.1, 0.9, 5e-3),
    "mnms": (0.5, 1.0, 0.1, 0.1, 1.0, 1e-2),
}
GENERIC = (0.5, 1.0, 0.1, 0.1, 1.0, 1e-2)

# What the presets set; the method adds the clock of the paper's phases.
DTLP_PAPER: dict[str, Value] = {"network": "diff_vnet", "optimizer": "sgd", "momentum": 0.9, "weight_decay": 3e-5}
DTLP_PAPER |= {"rampup_share": 1.0, "least_weight": 0.0, "teacher_view": "same"}
DTLP_PAPER |= {"theta_start": "random", "xi_start": "random", "theta_labelled_weight": 0.0}
DTLP_ADND: dict[str, Value] = DTLP_PAPER | {"teachers": "first", "difficulty": "adnd", "blur_border": "zero"}
DTLP_ADND |= {"quiet_passes": False, "teacher_mode": "train", "mix_weight": 0.0, "mic_weight": 0.0, "kd_weight": 0.0}
# The code of A&D minimises CE - Dice, twice the loss here, and gives the unlabelled term the weight 10.
DTLP_ADND |= {"rec_weight": 0.0, "correlation_weight": 0.0, "denoising_weight": 2.0, "difficulty_weight": 2.0}
DTLP_ADND |= {"pseudo_weight": 20.0}


@dataclass(frozen=True)
class DTLPSettings(MethodConfig):
    """The settings of DTLP-Net's own parts; ξ is the diffusion decoder, ψ that of the labels, θ the deployed one."""

    teachers: str = hyper(
        "both",
        "teachers: first (ξ and ψ, without L_rec), second (the moving average, without L_kd), or both",
        "table XI",
        choices=("both", "first", "second"),
    )
    teacher_view: str = hyper("weak", "the teachers see the weak view, or the same view as θ", choices=("weak", "same"))
    mask_ratio: float | None = hyper(
        None, "share of masked blocks; auto: table I for its data sets, else 0.5", "r (eq. 14)", low=0.0, high=1.0
    )
    denoising_weight: float = hyper(1.0, "weight of L_deno, ξ on labelled patches", "eq. 2", low=0.0)
    difficulty_weight: float = hyper(1.0, "weight of L_diff, ψ on labelled patches", "eq. 3", low=0.0)
    theta_labelled_weight: float = hyper(0.5, "weight of nnU-Net's loss of θ on labelled patches; paper: 0", low=0.0)
    pseudo_weight: float = hyper(0.0, "weight of L_u, pseudo-labels of whole patches", "eq. 11", low=0.0)
    mix_weight: float = hyper(1.0, "weight of L_mix, CutMix", "eq. 13", low=0.0)
    mic_weight: float | None = hyper(None, "weight of L_mic, masked patches; auto: table I", "α (eq. 15)", low=0.0)
    kd_weight: float | None = hyper(None, "weight of L_kd, distillation; auto: table I", "β (eq. 17)", low=0.0)
    rec_weight: float | None = hyper(None, "weight of L_rec, reconstruction; auto: table I", "γ (eq. 16)", low=0.0)
    correlation_weight: float | None = hyper(
        None, "weight of L_corr, label propagation; auto: table I", "η (eq. 20-21)", low=0.0
    )
    swap_kd_rec: bool = hyper(False, "exchange table I's columns β and γ, as section IV-E reads")
    rampup_share: float = hyper(0.3, "share of the method's steps over which unlabelled terms rise", low=0.0, high=1.0)
    least_weight: float = hyper(
        0.01, "an unlabelled term whose weight times the ramp is smaller is left out, with its passes", low=0.0
    )
    rec_space: Literal["logits", "probs", "features"] = hyper(
        "logits", "what L_rec reconstructs", "eq. 16", choices=("logits", "probs", "features")
    )
    kd_source: str = hyper("raw", "ξ's last output, or its clamped form, for L_kd", choices=("raw", "clamped"))
    cutmix_labels: str = hyper("truth", "label of a labelled partner in CutMix", "eq. 12", choices=("truth", "teacher"))
    difficulty: Literal["default", "adnd", "window", "off"] = hyper(
        "default", "weights of the classes in L_diff", "eq. 4-6", choices=("default", "adnd", "window", "off")
    )
    difficulty_form: Literal["normalised", "literal"] = hyper(
        "normalised", "where these weights stand", "eq. 3", choices=("normalised", "literal")
    )
    ddim_steps: int = hyper(10, "steps in which ξ denoises", low=2, high=1000)
    gumbel_temperature: float = hyper(1.0, "temperature of the Gumbel softmax", "eq. 7", low=0.01)
    blur_border: Literal["replicate", "zero"] = hyper(
        "replicate", "border of the Gaussian blur", "eq. 7", choices=("replicate", "zero")
    )
    correlation: Literal["row", "gather"] = hyper(
        "row", "the softmax goes over the targets or the sources", "eq. 18", choices=("row", "gather")
    )
    correlation_scale: Literal["inside", "outside"] = hyper(
        "inside", "where 1/√D stands", "eq. 18", choices=("inside", "outside")
    )
    correlation_detach: bool = hyper(True, "L_corr does not train the decoders")
    correlation_projection: Literal["block", "linear"] = hyper(
        "block", "layers before the embeddings", "eq. 18", choices=("block", "linear")
    )
    correlation_labelled: str = hyper(
        "psi", "decoder and features of L_corr on labelled patches", "eq. 21", choices=("psi", "xi")
    )
    correlation_stride: int = hyper(16, "largest stride of the features of L_corr", low=1)
    correlation_width: int = hyper(0, "numbers of an embedding; 0: as many as classes", "D", low=0)
    theta_aggregation: float = hyper(
        0.99, "weight of θ when it moves to the mean of ξ and ψ before a step; 1: it does not", low=0.0, high=1.0
    )
    theta_start: str = hyper("psi", "weights of θ when the method begins", choices=("psi", "random"))
    xi_start: str = hyper("psi", "weights of ξ when the method begins", choices=("psi", "random"))
    quiet_passes: bool = hyper(True, "passes of the teachers without dropout and without running statistics")

    def unlabelled_weights(self) -> dict[str, float]:
        """Return the weight of each term on unlabelled patches, without those that `teachers` leaves out."""
        weights = {
            "pseudo": self.pseudo_weight,
            "mix": self.mix_weight,
            "mic": self.mic_weight,
            "kd": 0.0 if self.teachers == "second" else self.kd_weight,
            "rec": 0.0 if self.teachers == "first" else self.rec_weight,
            "correlation": self.correlation_weight,
        }
        return {name: weight for name, weight in weights.items() if weight}


SettingsT = TypeVar("SettingsT", bound=DTLPSettings)


def with_table_1(config: SettingsT, preprocessed: Path) -> SettingsT:
    """Return the config with the paper's values where it has none, for the data set of the published protocol.

    The learning rate is set with the paper's presets alone, because the others keep nnU-Net's optimiser.

    Args:
        config: the settings of a run.
        preprocessed: folder of the preprocessed data set, whose splits name the protocol.
    """
    family = str(read_splits(preprocessed)[0].get("protocol", ""))
    values = dict(zip(COLUMNS, TABLE_1.get(re.split("[-_]", family)[0], GENERIC), strict=True))
    if config.swap_kd_rec:
        values["kd_weight"], values["rec_weight"] = values["rec_weight"], values["kd_weight"]
    if config.preset not in config.presets:
        del values["learning_rate"]
    missing: dict[str, Any] = {name: value for name, value in values.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **missing)
