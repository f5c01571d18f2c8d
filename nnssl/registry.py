"""The methods and networks of nnssl as plain data; this module imports neither torch nor nnU-Net."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any, ClassVar, TypeVar

from nnssl.config import NETWORK_KEY, MethodConfig
from nnssl.errors import UsageError, unknown_name

PLAN, NONE, RESIDUAL, BCP = "plan", "none", "residual", "bcp"  # words of settings that name a network


@dataclass(frozen=True)
class _Entry:
    """A class that the registry knows by its name; `load` imports it."""

    name: str
    class_name: str
    paper: str
    package: ClassVar[str]

    @property
    def module(self) -> str:
        """Dotted name of the module that defines the class."""
        return f"{self.package}.{self.name}"

    def load(self) -> Any:  # noqa: ANN401 - this module knows the class by its name only
        """Import and return the class."""
        return getattr(import_module(self.module), self.class_name)


@dataclass(frozen=True)
class Method(_Entry):
    """A training method.

    Attributes:
        name: name of the file in `nnssl_trainers.methods`, of the documentation page and of the test.
        class_name: the name that `-tr` takes.
        paper: citation.
        needs: the parts of a data set that the method needs besides labelled cases.
        activations: activation memory of a step in units of nnU-Net's supervised step at the plan's batch size, without
            the activations of `networks`.
        students: number of networks that learn by gradient, with 20 bytes per weight (weight, gradient, two moments and
            a half-precision copy).
        teachers: number of networks that only predict, with 4 bytes per weight.
        networks: the trained networks whose architecture is not the plan's, by their names in `NETWORKS`; planning
            measures their activations.
        takes_pseudo_labels: whether `-pseudo_labels` can give the masks of unlabelled scans.
    """

    needs: tuple[str, ...]
    activations: float
    students: int = 1
    teachers: int = 0
    networks: tuple[str, ...] = ()
    takes_pseudo_labels: bool = False
    package: ClassVar[str] = "nnssl_trainers.methods"


@dataclass(frozen=True)
class Network(_Entry):
    """A network that plans can name.

    Attributes:
        name: name of the file in `nnssl.networks`; `load_network` takes this name.
        class_name: name of the class.
        paper: citation.
    """

    package: ClassVar[str] = "nnssl.networks"


DEFAULT_METHOD = "FixMatchTrainer"  # what `nnssl_train` takes without `-tr`

_AnyEntry = TypeVar("_AnyEntry", bound=_Entry)

# The simplest method comes first: `nnssl_compare --choose` takes the first that is good enough.
METHODS: dict[str, Method] = {
    method.class_name: method
    for method in (
        Method(
            name="supervised",
            class_name="SupervisedTrainer",
            paper="Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image "
            "segmentation, Nature Methods 18, 2021",
            needs=(),
            activations=1.0,
        ),
        Method(
            name="mean_teacher",
            class_name="MeanTeacherTrainer",
            paper="Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017",
            needs=("unlabelled",),
            activations=2.0,
            teachers=1,
        ),
        Method(
            name="fixmatch",
            class_name="FixMatchTrainer",
            paper="Sohn et al., FixMatch: Simplifying semi-supervised learning with consistency and confidence, "
            "NeurIPS 2020; Yang et al., Revisiting weak-to-strong consistency in semi-supervised semantic "
            "segmentation, CVPR 2023",
            needs=("unlabelled",),
            activations=2.0,
            teachers=1,
        ),
        Method(
            name="self_training",
            class_name="SelfTrainingTrainer",
            paper="Huang et al., Revisiting nnU-Net for iterative pseudo labeling and efficient sliding window "
            "inference, FLARE 2022, LNCS 13816",
            needs=("unlabelled",),
            activations=2.0,
            takes_pseudo_labels=True,
        ),
        Method(
            name="dsmt",
            class_name="DSMTTrainer",
            paper="Su, Sun, Adamyk, DSMT-Net: Dual-student mean teacher network with pixel-level pseudo-label "
            "optimization for semi-supervised medical image segmentation, Computational Biology and Chemistry 119, "
            "2025; Bai et al., Bidirectional copy-paste for semi-supervised medical image segmentation, CVPR 2023",
            needs=("unlabelled",),
            activations=3.2,  # labelled patches and two mixes; the losses are in full precision
            students=2,
            teachers=1,
            networks=("mamba_unet",) * 3,
        ),
        Method(
            name="dptm",
            class_name="DPTMTrainer",
            paper="Mi et al., Dynamic thresholding and robust contrastive techniques for enhanced semi-supervised "
            "cardiac segmentation, PLoS One 21(4): e0342567, 2026",
            needs=("unlabelled",),
            activations=2.8,  # two batches, and two more in the encoder; 3.4 with nnU-Net's residual encoders
            teachers=1,
        ),
        Method(
            name="plgdf",
            class_name="PLGDFTrainer",
            paper="Wang et al., Pseudo label-guided data fusion and output consistency for semi-supervised medical "
            "image segmentation, Biomedical Signal Processing and Control 108, 2025",
            needs=("unlabelled",),
            activations=4.0,  # four batches; more with many classes, because the loss of each scale is at full size
            teachers=1,
        ),
        Method(
            name="cce",
            class_name="CCETrainer",
            paper="Lu et al., Enhancing dual network based semi-supervised medical image segmentation with "
            "uncertainty-guided pseudo-labeling, Knowledge-Based Systems 2025",
            needs=("unlabelled",),
            activations=0.75,  # the losses are in full precision
            students=2,
            networks=("resnet34_vnet", "resnet34_vnet", "vnet", "vnet"),  # each network sees two batches
        ),
        Method(
            name="dtlp",
            class_name="DTLPTrainer",
            paper="Li et al., Boosting generic semi-supervised medical image segmentation via diverse teaching and "
            "label propagation, arXiv 2508.08549, 2025; Wang and Li, Towards generic semi-supervised framework for "
            "volumetric medical image segmentation (A&D), NeurIPS 2023",
            needs=("unlabelled",),
            activations=7.0,  # five batches in θ, two more passes in ξ and ψ; the losses are in full precision
            teachers=1,
        ),
    )
}

NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        Network(
            name="unet_bcp",
            class_name="UNetBCP",
            paper="Ronneberger et al., U-Net, MICCAI 2015, as in Bai et al., Bidirectional copy-paste for "
            "semi-supervised medical image segmentation, CVPR 2023",
        ),
        Network(
            name="vnet",
            class_name="VNet",
            paper="Milletari et al., V-Net, 3DV 2016, as in Bai et al., Bidirectional copy-paste for semi-supervised "
            "medical image segmentation, CVPR 2023",
        ),
        Network(
            name="vnet_multiscale",
            class_name="VNetMultiscale",
            paper="Milletari et al., V-Net, 3DV 2016, with four outputs as in Wang et al., Pseudo label-guided data "
            "fusion and output consistency for semi-supervised medical image segmentation, Biomedical Signal "
            "Processing and Control 108, 2025",
        ),
        Network(
            name="resnet34_vnet",
            class_name="ResNet34VNet",
            paper="He et al., Deep residual learning, CVPR 2016, with V-Net's decoder as in Lu et al., Enhancing dual "
            "network based semi-supervised medical image segmentation, Knowledge-Based Systems 2025",
        ),
        Network(
            name="cce_pair",
            class_name="CCEPair",
            paper="Lu et al., Enhancing dual network based semi-supervised medical image segmentation with "
            "uncertainty-guided pseudo-labeling, Knowledge-Based Systems 2025: resnet34_vnet and vnet, averaged",
        ),
        Network(
            name="diff_vnet",
            class_name="DiffVNet",
            paper="Wang and Li, Towards generic semi-supervised framework for volumetric medical image segmentation "
            "(A&D), NeurIPS 2023: the encoder of Diff-VNet with one decoder",
        ),
        Network(
            name="mamba_unet",
            class_name="MambaUNet",
            paper="Wang et al., Mamba-UNet: UNet-like pure visual Mamba for medical image segmentation, "
            "arXiv 2402.05079, 2024",
        ),
        Network(
            name="swin_unet",
            class_name="SwinUNet",
            paper="Cao et al., Swin-Unet: Unet-like pure Transformer for medical image segmentation, ECCV "
            "Workshops 2022",
        ),
    )
}


def find_method(name: str) -> Method:
    """Return the method that `-tr` names.

    Raises:
        UsageError: no method has this name; the message lists the valid names.
    """
    return _find(METHODS, name, kind="trainer", option="-tr", otherwise="nnssl_methods")


def simplicity(trainer: str) -> int:
    """Return the place of a trainer in the order of simplicity, from 0.

    Stock nnU-Net's trainers are as simple as `SupervisedTrainer`; trainers that this package does not know come last.
    """
    names = list(METHODS)
    if trainer in names:
        return names.index(trainer)
    return 0 if trainer.startswith("nnUNetTrainer") else len(names)


def find_network(name: str) -> Network:
    """Return the network of this name.

    Raises:
        UsageError: no network has this name; the message lists the valid names.
    """
    return _find(NETWORKS, name, kind="network", option="network", otherwise="choose one of these names")


def check_networks(config: MethodConfig) -> None:
    """Check the settings that name networks, as far as the names tell; a dotted path stays for its import.

    Raises:
        UsageError: no network has such a name; the message lists the valid names.
    """
    for item in fields(config):
        if NETWORK_KEY in item.metadata:
            check_network(item.name, getattr(config, item.name), item.metadata[NETWORK_KEY])


def check_network(setting: str, text: str, others: Sequence[str] = ()) -> None:
    """Check that a setting names a network: a word, a key of `NETWORKS`, or a dotted path; the last two take options.

    Args:
        setting: name of the setting.
        text: its value, `mamba_unet:width=24` for example.
        others: further words that the setting takes.

    Raises:
        UsageError: no network has this name; the message lists the valid names.
    """
    name = text.partition(":")[0]
    if text in (PLAN, RESIDUAL, *others) or name in (BCP, *NETWORKS) or "." in name:
        return
    close = difflib.get_close_matches(name, (PLAN, RESIDUAL, BCP, *NETWORKS, *others), n=1)
    raise UsageError(
        f"{setting}={text} is no network",
        where=f"--set {setting}={text}",
        why=known_networks(others),
        run=f"--set {setting}={close[0]}" if close else "",
    )


def known_networks(others: Sequence[str] = ()) -> str:
    """Return the values of a setting that names a network, as text for a message."""
    return f"known: {', '.join((PLAN, RESIDUAL, BCP, *NETWORKS, *others))}, or the dotted path of a class"


def _find(table: dict[str, _AnyEntry], name: str, *, kind: str, option: str, otherwise: str) -> _AnyEntry:
    if name not in table:
        raise unknown_name(kind, name, table, option=option, otherwise=otherwise)
    return table[name]
