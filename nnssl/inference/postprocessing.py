"""Which stored decision about post-processing a prediction with some folds of a model follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnssl.evaluation.postprocessing import Postprocessing
from nnssl.names import FOLD_PREFIX


@dataclass(frozen=True)
class Choice:
    """What a prediction does to its masks.

    Attributes:
        decision: the post-processing, None for none.
        line: the choice and its evidence in words; empty where the model has no decision.
    """

    decision: Postprocessing | None = None
    line: str = ""


def choose_postprocessing(model: Path, folds: Sequence[str]) -> Choice:
    """Return the post-processing of masks that some folds of a model predict.

    The decision by cross-validation, in the model's folder, counts for all of its folds. Without it, the decisions of
    the folds count if they are the same; if they differ, or only some folds have one, nothing is done.

    Args:
        model: the model's folder.
        folds: folds whose logits are averaged.

    Raises:
        DataError: a stored decision is damaged.
        EnvironmentProblem: a stored decision cannot be read.
    """
    if decision := Postprocessing.read(model):
        return Choice(decision, str(decision))
    found = {fold: Postprocessing.read(model / f"{FOLD_PREFIX}{fold}") for fold in folds}
    decisions = [decision for decision in found.values() if decision is not None]
    if not decisions:
        return Choice()
    first = decisions[0]
    if len(decisions) < len(found) or any(decision.applied != first.applied for decision in decisions):
        effects = ("no decision" if decision is None else decision.effect for decision in found.values())
        told = "; ".join(f"fold {fold}: {effect}" for fold, effect in zip(found, effects, strict=True))
        return Choice(None, f"none, as the folds differ ({told}) and no cross-validation has decided")
    return Choice(first, str(first) if len(found) == 1 else f"{first.effect} ({first.evidence} of each fold)")


def shared_choice(choices: Sequence[Choice]) -> Choice:
    """Return the post-processing of the masks of several models together: theirs where all have the same decision.

    Args:
        choices: of each model, at least one.
    """
    decisions = [choice.decision for choice in choices]
    first = decisions[0]
    if first is not None and all(each is not None and each.applied == first.applied for each in decisions):
        return Choice(first, f"{first.effect} (the same decision of each run)")
    return Choice(None, "none, as the runs have no decision in common" if any(c.line for c in choices) else "")
