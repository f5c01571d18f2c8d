"""Whole unlabelled scans with stored pseudo-labels, which training then uses like labels.

The network of the supervised stage, or several of them together, predicts every unlabelled scan once, with mirroring;
or the user gives masks (`-pseudo_labels`), and the supervised stage falls away. Of a structure that is one component in
every labelled scan, the pseudo-labels of the network keep the largest component. Labels and confidence stand in the
folder `pseudo_labels` of the fold, with a report about every scan. A loose filter leaves the worst scans out, and
voxels below a confidence do not count. A killed run goes on with the scans that are missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from tqdm import tqdm

from nnssl.config import hyper
from nnssl.data.labels import Label
from nnssl.evaluation.postprocessing import postprocess
from nnssl.host import forget_patch_weights
from nnssl.inference.pipeline import run_overlapped
from nnssl.labelling.files import MaskReader, check_masks, find_masks
from nnssl.labelling.prediction import mean_probabilities, most_likely
from nnssl.labelling.report import Origin, write_report
from nnssl.labelling.scores import ScanScore, agreement, choose_scans, score_scan, voxel_volume_ml
from nnssl.labelling.store import ENDING, PseudoLabelledCases, read_agreement, read_pseudo_label, write_pseudo_label
from nnssl.names import CHECKPOINT_LATEST, CHECKPOINT_SUPERVISED, PSEUDO_FOLDER, PSEUDO_JSON
from nnssl_trainers.frame.architecture import unwrap
from nnssl_trainers.frame.postprocessing import anatomy_of_labels
from nnssl_trainers.frame.stages import StagedConfig, StagedTrainer
from nnssl_trainers.frame.trainer import SemiSupervisedTrainer
from nnssl_trainers.frame.validation import predictor_of

Store = Callable[["Predicted"], None]
T = TypeVar("T")
log = logging.getLogger("nnssl.train")


@dataclass(frozen=True)
class Predicted:
    """What the labelling networks say of a scan: labels (*S), confidence (*S, uint8), agreement for each structure."""

    case: str
    labels: NDArray[Any]
    confidence: NDArray[np.uint8]
    agreed: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class StoredLabelsConfig(StagedConfig):
    """The settings of every method that learns from stored pseudo-labels."""

    keep_share: float = hyper(
        0.9, "share of the pseudo-labelled scans that is kept; the worst are left out", low=0.5, high=1.0
    )
    pseudo_confidence: float = hyper(
        0.7, "confidence below which a voxel of a pseudo-label does not count", low=0.0, high=1.0
    )
    pseudo_foreground: float = hyper(
        0.33, "share of the pseudo-labelled patches that is centred on foreground", low=0.0, high=1.0
    )
    pseudo_components: bool = hyper(
        True, "pseudo-labels keep only the largest component of what is one component in every labelled scan"
    )


StoredLabelsConfigT = TypeVar("StoredLabelsConfigT", bound=StoredLabelsConfig)


class StoredLabelsTrainer(StagedTrainer[StoredLabelsConfigT]):
    """The frame of methods that learn from stored pseudo-labels; see the docstring of this module.

    Attributes:
        kept: names of the scans whose pseudo-labels are used; None before the scans are labelled; empty where the
            network was not ready to label them, so that the run is supervised.
        lost_classes: of each structure, whether no kept scan has a voxel of it.
    """

    scored_on = "scans"
    kept: list[str] | None = None
    lost_classes: list[bool]

    @property
    def supervised_iterations(self) -> int:
        """Number of iterations of the supervised stage; 0 where the pseudo-labels are given."""
        return 0 if self.settings.pseudo_labels else super().supervised_iterations

    @property
    def given_labels(self) -> bool:
        """Whether the user gave the pseudo-labels."""
        return bool(self.settings.pseudo_labels)

    @property
    def pseudo_folder(self) -> Path:
        """The folder of the stored pseudo-labels."""
        return Path(self.output_folder) / PSEUDO_FOLDER

    @property
    def label_source(self) -> str:
        """What the networks that label are, for the report."""
        return CHECKPOINT_SUPERVISED if self.supervised_iterations else self.settings.start_from

    def labelling_weights(self) -> list[dict[str, Tensor]]:
        """Return copies of the weights of the networks that label together, the own network's last.

        The mean of their probabilities counts.
        """
        return [{name: tensor.clone() for name, tensor in unwrap(self.network).state_dict().items()}]

    @property
    def structures(self) -> list[Label]:
        """The labels, or the regions, that the network learns, without background."""
        labels = self.label_manager
        return list(labels.foreground_regions if labels.has_regions else labels.foreground_labels)

    @property
    def draws_unlabelled(self) -> bool:
        """Whether the streams hold pseudo-labelled patches."""
        return super().draws_unlabelled and self.kept != []

    @property
    def unlabelled_foreground(self) -> float:
        """Share of the unlabelled patches that is centred on foreground."""
        return self.config.pseudo_foreground

    def dataset_to_draw(self) -> PseudoLabelledCases:
        """Return the kept scans with their pseudo-labels; the scans are labelled first if they are not yet."""
        if self.kept is None:
            self.label_scans()
        least, cases = self.config.pseudo_confidence, self.unlabelled_dataset()
        return PseudoLabelledCases(cases, self.pseudo_folder, self.kept or [], self.structures, least)

    def looks_before(self, iteration: int) -> bool:  # noqa: ARG002
        """Return False: readiness is decided once, on whole labelled scans."""
        return False

    # ------------------------------------------------------------------ the stages

    def initialize(self) -> None:
        """Build network, optimiser and loss."""
        super().initialize()
        self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # sets the mirror axes of prediction, too
        self.lost_classes = []

    def on_train_start(self) -> None:
        """Go on with a labelling that was interrupted; then start as every run does."""
        if not self.was_initialized:
            self.initialize()
        if self._second_stage and self.kept is None:
            self.label_scans()
        super().on_train_start()

    def begin_second_stage(self) -> None:
        """Begin the second stage with the labelling of the scans; a run that is killed then goes on from here."""
        super().begin_second_stage()
        if self.local_rank == 0:
            shutil.rmtree(self.pseudo_folder, ignore_errors=True)  # of a killed run that has no checkpoint
        if self.is_ddp:
            distributed.barrier()
        if not self.settings.pseudo_labels:
            self.save_checkpoint(str(Path(self.output_folder) / CHECKPOINT_LATEST))
        self.label_scans()

    def label_scans(self) -> None:
        """Store the pseudo-label of every unlabelled scan, and choose the scans to learn from.

        The labelling network must find every structure on the labelled scans (`ready_dice`); otherwise no scan is
        labelled.

        Raises:
            StoppedBySignal: the run was stopped; finished scans are stored.
            EnvironmentProblem: a file cannot be written.
        """
        least = self.config.ready_dice
        if least and not self.given_labels:
            dice = self._dice_on_labelled_scans() if self.local_rank == 0 else ()
            self.labelled_dice = self._from_first_process(dice)
            known = [value for value in self.labelled_dice if not math.isnan(value)]
            if not known or min(known) < least:
                self.kept = []
                log.warning("warning: no scan is labelled: a class is below %g (%s)", least, self._dice_text())
                return
        origins = self._store_given_labels() if self.given_labels else self._store_predictions()
        if self.is_ddp:
            distributed.barrier()
        chosen: tuple[list[str], list[bool]] = self._choose(origins) if self.local_rank == 0 else ([], [])
        self.kept, self.lost_classes = self._from_first_process(chosen)
        self.method_begin = self.iteration if self.method_begin is None else self.method_begin
        total = len(self.fold_cases().unlabelled)
        self._tell(f"{len(self.kept)} of {total} unlabelled scans have pseudo-labels that count; {self.pseudo_folder}")

    def _store_given_labels(self) -> dict[str, Origin]:
        """Check the masks that the user gave, and store them; return the origin of each. One process does so."""
        if self.local_rank != 0:
            return {}
        dataset, folder = self.unlabelled_dataset(), Path(self.settings.pseudo_labels)
        reader = MaskReader(self.plans_manager, self.configuration_manager, self.dataset_json)
        masks = find_masks(folder, reader.ending, self.fold_cases())
        check_masks(reader, masks, {case: dataset.load_case(case)[3] for case in masks})
        for case, given in masks.items():
            if not self._file(case).is_file():
                image, _, _, properties = dataset.load_case(case)
                self._store(Predicted(case, *reader.on_preprocessed_grid(given, properties, image.shape[1:])))
        return {case: given.origin for case, given in masks.items()}

    def _store_predictions(self) -> dict[str, Origin]:
        """Predict the unlabelled scans whose pseudo-label is missing, and return the origin of all."""
        cases = sorted(self.fold_cases().unlabelled)
        missing = [case for case in cases if not self._file(case).is_file()]
        if self.is_ddp:
            distributed.barrier()  # every process has seen the same files
            missing = missing[self.local_rank :: distributed.get_world_size()]
        decision = anatomy_of_labels(self) if missing and self.config.pseudo_components else None

        def store(found: Predicted) -> None:
            self._store(dataclasses.replace(found, labels=postprocess(found.labels, decision)))

        self.predict_scans(self.unlabelled_dataset(), missing, store)
        return dict.fromkeys(cases, self._own_origin())

    def _store(self, found: Predicted) -> None:
        least = self.config.pseudo_confidence
        write_pseudo_label(
            self._file(found.case), found.labels, found.confidence, self.structures, least, agreed=found.agreed
        )

    def _file(self, case: str) -> Path:
        return self.pseudo_folder / f"{case}{ENDING}"

    def predict_scans(self, dataset: Any, cases: Sequence[str], store: Store) -> None:  # noqa: ANN401 - nnU-Net's class
        """Predict whole preprocessed scans with mirroring; reading, network and `store` of neighbouring scans overlap.

        Args:
            dataset: nnU-Net's data set of the scans.
            cases: names of the scans.
            store: takes what the networks say about each scan.

        Raises:
            StoppedBySignal: the run was stopped.
        """
        network = unwrap(self.network)
        self.set_deep_supervision_enabled(False)
        network.eval()
        predictor, members = predictor_of(self, network), self.labelling_weights()

        def load(case: str) -> Tensor:
            return torch.from_numpy(dataset.load_case(case)[0][:].copy())

        def infer(_: str, image: Tensor) -> list[Tensor]:
            logits = []
            for weights in members:
                if len(members) > 1:
                    network.load_state_dict(weights)
                logits.append(predictor.predict_sliding_window_return_logits(image).cpu())
            return logits

        def export(case: str, _: Tensor, logits: list[Tensor]) -> None:
            probs = [self.label_manager.apply_inference_nonlin(z) for z in logits]
            alone = [most_likely(p, self.label_manager)[0] for p in probs] if len(members) > 1 else []
            found = most_likely(mean_probabilities(probs), self.label_manager)
            store(Predicted(case, *found, agreement(alone, self.structures)))

        for _ in tqdm(run_overlapped(cases, load, infer, export), total=len(cases), desc=PSEUDO_FOLDER, disable=None):
            if self._stop_requested and not self.is_ddp:
                raise self._stop_error()
        network.load_state_dict(members[-1])
        forget_patch_weights()
        self.set_deep_supervision_enabled(self.enable_deep_supervision)
        self.set_training_mode()

    # ------------------------------------------------------------------ readiness and choice of the scans

    def epoch_warnings(self) -> list[str]:
        """Return the general warnings; readiness is decided once, so that no epoch warns of it."""
        return SemiSupervisedTrainer.epoch_warnings(self)

    def _labelled_dataset(self) -> Any:  # noqa: ANN401 - nnU-Net's dataset class
        return self.dataset_class(self.preprocessed_dataset_folder, list(self.fold_cases().labelled))

    def _dice_on_labelled_scans(self) -> tuple[float, ...]:
        """Return the Dice of each structure over all voxels of the labelled scans, NaN where no scan shows it."""
        dataset, counts = self._labelled_dataset(), np.zeros((3, len(self.structures)))

        def count(found_in: Predicted) -> None:
            truth, labels = dataset.load_case(found_in.case)[1][:][0], found_in.labels
            known = truth != self.label_manager.ignore_label
            for k, structure in enumerate(self.structures):
                found, wanted = np.isin(labels, structure) & known, np.isin(truth, structure) & known
                counts[:, k] += [(found & wanted).sum(), found.sum(), wanted.sum()]

        self.predict_scans(dataset, dataset.identifiers, count)
        both, found, wanted = counts
        return tuple(np.where(wanted > 0, 2 * both / np.maximum(found + wanted, 1), np.nan).tolist())

    def _choose(self, origins: Mapping[str, Origin]) -> tuple[list[str], list[bool]]:
        """Score all pseudo-labels, write the report, and return the kept scans, and which structures they lack."""
        dataset, names = self.unlabelled_dataset(), self.structure_names()
        scores = {}
        for case in sorted(origins):
            labels, confidence = read_pseudo_label(self._file(case))
            volume = voxel_volume_ml(labels.shape, dataset.load_case(case)[3])
            scores[case] = score_scan(labels, confidence, self.structures, volume, read_agreement(self._file(case)))
        verdicts = choose_scans(scores, self._labelled_volumes(), names, self.config.keep_share)
        write_report(self.pseudo_folder / PSEUDO_JSON, names, scores, verdicts, origins)
        kept = [case for case, verdict in verdicts.items() if verdict.kept]
        lost = [not any(scores[case].volumes_ml[k] for case in kept) for k in range(len(names))]
        if any(lost):
            missing = ", ".join(name for name, is_lost in zip(names, lost, strict=True) if is_lost)
            log.warning("warning: no pseudo-label has a voxel of %s; unlabelled scans cannot teach it", missing)
        return kept, lost

    def _own_origin(self) -> Origin:
        digest = hashlib.sha256()
        for weights in self.labelling_weights():
            for tensor in weights.values():
                digest.update(tensor.cpu().numpy().tobytes())
        return Origin("model", self.label_source, digest.hexdigest())

    def _labelled_volumes(self) -> list[tuple[float, ...]]:
        """Return the volumes (ml) of the structures in each labelled scan; none where an ignore label hides parts."""
        if self.label_manager.has_ignore_label:
            return []
        dataset, volumes = self._labelled_dataset(), []
        for case in dataset.identifiers:
            _, truth, _, properties = dataset.load_case(case)
            labels = truth[:][0]
            sure = np.full(labels.shape, 255, np.uint8)
            score: ScanScore = score_scan(labels, sure, self.structures, voxel_volume_ml(labels.shape, properties))
            volumes.append(score.volumes_ml)
        return volumes

    def _from_first_process(self, value: T) -> T:
        """Return the value that the first process has."""
        if not self.is_ddp:
            return value
        shared = [value]
        distributed.broadcast_object_list(shared, device=self.device)
        return shared[0]

    # ------------------------------------------------------------------ state

    def state(self) -> dict[str, Any]:
        """Return the state, including the scans that are kept."""
        return {**super().state(), "kept": self.kept, "lost_classes": self.lost_classes}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state that includes the scans that are kept."""
        super().load_state(state)
        self.kept, self.lost_classes = state["kept"], state["lost_classes"]
