"""The converters as plain data: this module imports neither numpy nor SimpleITK nor nnU-Net."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnssl.errors import unknown_name

if TYPE_CHECKING:
    from nnssl.dataset_conversion.engine.records import Found

PACKAGE = "nnssl.dataset_conversion"


@dataclass(frozen=True)
class Option:
    """An option of one converter.

    Attributes:
        flag: the option on the command line; a switch begins with two dashes.
        text: help text.
        kind: `bool` for a switch, or the type of the value.
        count: number of values: None for one, `+` for one or more, or a number.
        default: value if the option is not given.
        metavar: name of the value in the help.
        choices: the allowed values, None for any.
        alias: a second spelling of the flag.
    """

    flag: str
    text: str
    kind: type = str
    count: int | str | None = None
    default: Any = None
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    alias: str | None = None

    @property
    def name(self) -> str:
        """Key under which the converter finds the value."""
        return self.flag.lstrip("-")


@dataclass(frozen=True)
class Converter:
    """One converter; its file `NAME.py` holds `find_cases(folder, options) -> Found`.

    Attributes:
        name: file name, docs page, test, and name for `nnssl_convert`.
        title: name of the data set for people.
        dataset: default of `-o`, the part of the folder name after the id.
        owner: name of the organisation or challenge that distributes the data set.
        licence: licence as the owner states it.
        citation: reference that the owner asks users to cite.
        options: options beyond those of every converter.
        same_scans_are_one_patient: default of `--same_scans_are_one_patient`.
        own_data: whether users bring their own scans, so that scans without labels are expected.
    """

    name: str
    title: str
    dataset: str
    owner: str
    licence: str
    citation: str
    options: tuple[Option, ...] = ()
    same_scans_are_one_patient: bool = False
    own_data: bool = False

    def load(self) -> Callable[[Path, dict[str, Any]], Found]:
        """Import the file of the converter and return its `find_cases`."""
        found: Callable[[Path, dict[str, Any]], Found] = import_module(f"{PACKAGE}.{self.name}").find_cases
        return found


LABEL_NAMES = Option("-label_names", "names of the labels 1, 2, … (default: label_1 label_2 …)", str, "+", None, "NAME")
OWNERS_TERMS = "as the owner of the images states"
MODALITY = Option(
    "-modality", "convert one modality only (default: both, as domains)", metavar="ct|mr", choices=("ct", "mr")
)

CONVERTERS: dict[str, Converter] = {
    converter.name: converter
    for converter in (
        Converter(
            name="acdc",
            title="ACDC, cine-MRI of the heart",
            dataset="ACDC",
            owner="Human Heart Project, CREATIS, INSA Lyon",
            licence="CC BY-NC-SA 4.0",
            citation="Bernard et al., Deep learning techniques for automatic MRI cardiac multi-structures segmentation "
            "and diagnosis: is the problem solved?, IEEE Transactions on Medical Imaging 37(11), 2018",
            options=(Option("--cine", "4-D frames other than ED and ES as additional unlabelled scans", bool),),
        ),
        Converter(
            name="la",
            title="Left Atrium 2018, late gadolinium-enhanced MRI",
            dataset="LeftAtrium",
            owner="Atrial Segmentation Challenge 2018, Cardiac Atlas Project",
            licence="terms of the Atrial Segmentation Challenge 2018",
            citation="Xiong et al., A global benchmark of algorithms for segmenting the left atrium from late "
            "gadolinium-enhanced cardiac magnetic resonance imaging, Medical Image Analysis 67, 2021",
        ),
        Converter(
            name="pancreas_ct",
            title="Pancreas-CT, abdominal CT",
            dataset="PancreasCT",
            owner="The Cancer Imaging Archive, National Institutes of Health Clinical Center",
            licence="CC BY 3.0",
            citation="Roth et al., Data from Pancreas-CT, The Cancer Imaging Archive, 2016, "
            "doi 10.7937/K9/TCIA.2016.tNB1kqBU",
        ),
        Converter(
            name="brats2019",
            title="BraTS 2019, MRI of brain tumors",
            dataset="BraTS2019",
            owner="Multimodal Brain Tumor Segmentation Challenge 2019, University of Pennsylvania",
            licence="terms of the BraTS 2019 challenge",
            citation="Menze et al., The multimodal brain tumor image segmentation benchmark (BRATS), IEEE Transactions "
            "on Medical Imaging 34(10), 2015; Bakas et al., Scientific Data 4, 2017; Bakas et al., arXiv 1811.02629",
            options=(
                Option("--flair_only", "one channel, the FLAIR, instead of four", bool),
                Option("--whole_tumor", "one label, the whole tumor, instead of three nested regions", bool),
            ),
        ),
        Converter(
            name="mmwhs",
            title="MM-WHS 2017, CT and MRI of the whole heart",
            dataset="MMWHS",
            owner="Multi-Modality Whole Heart Segmentation Challenge 2017, Fudan University",
            licence="terms of the MM-WHS challenge",
            citation="Zhuang and Shen, Multi-scale patch and multi-modality atlases for whole heart segmentation of "
            "MRI, Medical Image Analysis 31, 2016; Zhuang et al., Medical Image Analysis 58, 2019",
            options=(
                MODALITY,
                Option("--four_structures", "the labels of the adaptation papers: MYO, LA, LV and AA", bool),
            ),
        ),
        Converter(
            name="synapse",
            title="Synapse (BTCV), abdominal CT with 13 organs",
            dataset="Synapse",
            owner="Beyond the Cranial Vault challenge, Synapse syn3193805",
            licence="terms of Synapse syn3193805",
            citation="Landman et al., MICCAI multi-atlas labeling beyond the cranial vault, workshop "
            "and challenge, 2015",
        ),
        Converter(
            name="amos",
            title="AMOS22, abdominal CT and MRI with 15 organs",
            dataset="AMOS22",
            owner="AMOS 2022 challenge, Zenodo 7262581",
            licence="CC BY 4.0",
            citation="Ji et al., AMOS: a large-scale abdominal multi-organ benchmark for versatile medical image "
            "segmentation, NeurIPS 2022",
            options=(MODALITY,),
        ),
        Converter(
            name="mnms",
            title="M&Ms, cine-MRI of the heart from four vendors",
            dataset="MnMs",
            owner="M&Ms challenge 2020, University of Barcelona",
            licence="terms of the M&Ms challenge",
            citation="Campello et al., Multi-centre, multi-vendor and multi-disease cardiac segmentation: the M&Ms "
            "challenge, IEEE Transactions on Medical Imaging 40(12), 2021",
            options=(
                Option("--cine", "4-D frames other than ED and ES of the training part as unlabelled scans", bool),
            ),
        ),
        Converter(
            name="msd",
            title="a task of the Medical Segmentation Decathlon",
            dataset="",
            owner="Medical Segmentation Decathlon",
            licence="CC BY-SA 4.0",
            citation="Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13, 2022",
        ),
        Converter(
            name="h5",
            title="the community's h5 files (SSL4MIS, UA-MT)",
            dataset="H5",
            owner="whoever made the files",
            licence=OWNERS_TERMS,
            citation="the data set that the files were made from",
            options=(
                Option(
                    "-spacing", "voxel size in the order of the arrays' axes (default: 1 1 1)", float, 3, None, "MM"
                ),
                LABEL_NAMES,
            ),
            same_scans_are_one_patient=True,
        ),
        Converter(
            name="folder",
            title="your own images, labels and unlabelled images",
            dataset="Folder",
            owner="you",
            licence=OWNERS_TERMS,
            citation="the data set that the images come from",
            own_data=True,
            options=(
                Option(
                    "-images",
                    "globs of the labelled images below -i, one for each channel; more such sets may follow",
                    str,
                    "+",
                    ("images/*",),
                    "GLOB",
                ),
                Option(
                    "-labels",
                    "globs of the labels; their * matches what that of the images does",
                    str,
                    "+",
                    ("labels/*",),
                    "GLOB",
                ),
                Option(
                    "-unlabelled",
                    "globs of the unlabelled images (default: unlabelled/* or unlabeled/*)",
                    str,
                    "+",
                    None,
                    "GLOB",
                    alias="-unlabeled",
                ),
                Option("-test", "globs of the test images (default: test/*)", str, "+", None, "GLOB"),
                Option(
                    "-test_labels",
                    "globs of the labels of test images, for nnssl_evaluate (default: test_labels/*)",
                    str,
                    "+",
                    None,
                    "GLOB",
                ),
                Option(
                    "-patient",
                    r"regular expression that finds the patient in the name of a case, 'patient\d+' for "
                    "example (default: every case is a patient)",
                    str,
                    None,
                    None,
                    "REGEX",
                ),
                Option("-channel", "names of the channels, CT for example", str, "+", ("image",), "NAME"),
                LABEL_NAMES,
                Option(
                    "-label_values",
                    "values in the label files, in the order of the labels 0, 1, 2, … (default: as they are)",
                    int,
                    "+",
                    None,
                    "VALUE",
                ),
            ),
        ),
    )
}


def find_converter(name: str) -> Converter:
    """Return the converter of this name.

    Raises:
        UsageError: no such converter; the message lists the names.
    """
    if name in CONVERTERS:
        return CONVERTERS[name]
    raise unknown_name("converter", name, CONVERTERS, option="nnssl_convert", otherwise="nnssl_convert --help")
