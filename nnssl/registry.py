"""What nnssl offers, as plain data: reading it imports neither torch nor nnU-Net."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, TypeVar

from nnssl.errors import unknown_name


@dataclass(frozen=True)
class _Entry:
    """A class that is known by name until it is loaded."""

    name: str
    class_name: str
    paper: str
    package: ClassVar[str]

    @property
    def module(self) -> str:
        """Dotted name of the file that holds the class."""
        return f"{self.package}.{self.name}"

    def load(self) -> Any:  # noqa: ANN401 - a class, known to this module by name only
        """Import and return the class."""
        return getattr(import_module(self.module), self.class_name)


@dataclass(frozen=True)
class Method(_Entry):
    """One training method.

    Attributes:
        name: file name in `nnssl_trainers.methods`, docs page and test.
        class_name: what `-tr` takes.
        paper: citation.
        needs: what the data set must hold beyond labelled cases.
        activations: activation memory of a step in units of nnU-Net's supervised step at the plan's batch size,
            without that of `networks`.
        students: networks trained by gradient (weight, gradient, two moments, half-precision copy: 20 bytes a weight).
        teachers: networks held for inference only (4 bytes a weight).
        networks: trained networks of their own architecture, names in `NETWORKS`; planning measures their activations.
    """

    needs: tuple[str, ...]
    activations: float
    students: int = 1
    teachers: int = 0
    networks: tuple[str, ...] = ()
    package: ClassVar[str] = "nnssl_trainers.methods"


@dataclass(frozen=True)
class Network(_Entry):
    """One network that plans can name.

    Attributes:
        name: file name in `nnssl.networks`, and what `load_network` takes.
        class_name: its class.
        paper: citation.
    """

    package: ClassVar[str] = "nnssl.networks"


_AnyEntry = TypeVar("_AnyEntry", bound=_Entry)

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
            name="dsmt",
            class_name="DSMTTrainer",
            paper="Su, Sun, Adamyk, DSMT-Net: Dual-student mean teacher network with pixel-level pseudo-label "
            "optimization for semi-supervised medical image segmentation, Computational Biology and Chemistry 119, "
            "2025",
            needs=("unlabelled",),
            activations=1.1,
            students=2,
            teachers=1,
            networks=("mamba_unet",),
        ),
        Method(
            name="dptm",
            class_name="DPTMTrainer",
            paper="Mi et al., Dynamic thresholding and robust contrastive techniques for enhanced semi-supervised "
            "cardiac segmentation, PLoS One 21(4): e0342567, 2026",
            needs=("unlabelled",),
            activations=2.8,  # two batches, and the encoder on two more; with nnU-Net's residual encoders 3.4
            teachers=1,
        ),
        Method(
            name="plgdf",
            class_name="PLGDFTrainer",
            paper="Wang et al., Pseudo label-guided data fusion and output consistency for semi-supervised medical "
            "image segmentation, Biomedical Signal Processing and Control 108, 2025",
            needs=("unlabelled",),
            activations=4.0,  # four batches; more with many classes, as losses are taken at full size for every scale
            teachers=1,
        ),
        Method(
            name="cce",
            class_name="CCETrainer",
            paper="Lu et al., Enhancing dual network based semi-supervised medical image segmentation with "
            "uncertainty-guided pseudo-labeling, Knowledge-Based Systems 2025",
            needs=("unlabelled",),
            activations=0.75,  # of the losses, which are in full precision
            students=2,
            networks=("resnet34_vnet", "resnet34_vnet", "vnet", "vnet"),  # both batches in each
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
            name="mamba_unet",
            class_name="MambaUNet",
            paper="Wang et al., Mamba-UNet: UNet-like pure visual Mamba for medical image segmentation, "
            "arXiv 2402.05079, 2024",
        ),
    )
}


def find_method(name: str) -> Method:
    """Return the method that `-tr` names.

    Raises:
        UsageError: no such method; the message lists the valid names.
    """
    return _find(METHODS, name, kind="trainer", option="-tr", otherwise="nnssl_methods")


def find_network(name: str) -> Network:
    """Return the network of this name.

    Raises:
        UsageError: no such network; the message lists the valid names.
    """
    return _find(NETWORKS, name, kind="network", option="network", otherwise="choose one of these names")


def _find(table: dict[str, _AnyEntry], name: str, *, kind: str, option: str, otherwise: str) -> _AnyEntry:
    if name not in table:
        raise unknown_name(kind, name, table, option=option, otherwise=otherwise)
    return table[name]
