"""The papers of methods and networks as BibTeX, from `papers.bib`; this module imports the standard library only."""

from __future__ import annotations

import re
from pathlib import Path

from nnssl.errors import unknown_name
from nnssl.registry import METHODS, NETWORKS

BIBLIOGRAPHY = Path(__file__).with_name("papers.bib")
HOST = "isensee2021nnunet"  # every run is one of nnU-Net
PAPERS: dict[str, tuple[str, ...]] = {
    "supervised": (HOST,),
    "mean_teacher": ("tarvainen2017mean",),
    "fixmatch": ("sohn2020fixmatch", "yang2023unimatch"),
    "self_training": ("huang2022selftraining",),
    "dsmt": ("su2025dsmt", "bai2023bcp", "wang2024mambaunet"),
    "dptm": ("mi2026dptm",),
    "plgdf": ("wang2025plgdf",),
    "cce": ("lu2025cce",),
    "dtlp": ("li2025dtlp", "wang2023adnd"),
    "unet_bcp": ("ronneberger2015unet", "bai2023bcp"),
    "vnet": ("milletari2016vnet", "bai2023bcp"),
    "vnet_multiscale": ("milletari2016vnet", "wang2025plgdf"),
    "resnet34_vnet": ("he2016resnet", "milletari2016vnet", "lu2025cce"),
    "cce_pair": ("lu2025cce",),
    "diff_vnet": ("wang2023adnd",),
    "mamba_unet": ("wang2024mambaunet",),
    "swin_unet": ("cao2022swinunet",),
}


def entries() -> dict[str, str]:
    """Return the BibTeX entries of `papers.bib` by their keys."""
    text = BIBLIOGRAPHY.read_text(encoding="utf-8")
    return {re.split("[{,]", entry)[1]: entry.strip() for entry in re.split(r"\n\n(?=@)", text)}


def citation(name: str) -> dict[str, str]:
    """Return what to cite for a method or a network: BibTeX entries by their keys, nnU-Net's last.

    Args:
        name: class name of a trainer (what `-tr` takes), or the short name of a method or network.

    Raises:
        UsageError: no method and no network has this name; the message lists the valid names.
    """
    short = METHODS[name].name if name in METHODS else name
    if short not in PAPERS:
        raise unknown_name("method or network", name, (*METHODS, *NETWORKS), option="--cite", otherwise="nnssl_methods")
    known = entries()
    return {key: known[key] for key in dict.fromkeys((*PAPERS[short], HOST))}
