from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnssl.errors import UsageError
from nnssl.ingredients.consistency import relative_l2
from nnssl.ingredients.schedules import gaussian_rampup
from nnssl.ingredients.supervised import dice_ce
from nnssl.networks.diff_vnet import DiffVNet
from nnssl.training import checkpoints
from nnssl_trainers.methods.dtlp import DTLPConfig
from nnssl_trainers.parts.dtlp_settings import DTLP_ADND
from nnssl_trainers.parts.masked_mixing import mask_blocks

SMALL = {"ddim_steps": 2, "rampup_share": 0.0}
VNET = "diff_vnet:width=4"
UNLABELLED = ["mix", "mic", "kd", "rec", "correlation"]
LABELLED = ["labelled_xi", "labelled_psi", "labelled_correlation", "labelled_theta"]


@pytest.fixture
def ready(make_trainer):
    """Return a function that makes an initialised DTLPTrainer and one batch, at iteration 4 of 8."""

    def make(dim: int = 2, iteration: int = 4, **config: Any):
        trainer = make_trainer("DTLPTrainer", dim, num_iterations=8, config={**SMALL, **config})
        trainer.initialize()
        trainer.set_training_mode()
        batch = next(trainer.get_dataloaders()[0])
        trainer.iteration = iteration
        return trainer, trainer._move_to_device(batch)

    return make


def modules_of(trainer: Any) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of the modules of the gradient table."""
    network, branches = trainer.network, trainer.branches
    first = network.encoder.stages[0] if getattr(network.encoder, "stem", None) is None else network.encoder.stem
    own = {id(p) for p in first.parameters()}
    parts: dict[str, list[Any]] = {
        "stem_diff": [branches.xi.image_stem, branches.xi.map_stem, branches.xi.rest_of_stem, branches.xi.time],
        "xi": [branches.xi.decoder, branches.xi.decoder_shifts],
        "psi": [branches.psi],
        "head": [branches.head] if branches.head is not None else [],
        "teacher": [trainer.teacher],
    }
    found = {name: [p for part in each for p in part.parameters()] for name, each in parts.items()}
    found["stem_diff"] += list(branches.xi.encoder_shifts.parameters())
    found["stem_img"] = list(first.parameters())
    found["encoder"] = [p for p in network.encoder.parameters() if id(p) not in own]
    found["theta"] = [p for name, p in network.decoder.named_parameters() if not name.startswith("encoder.")]
    return found


def reached_by(trainer: Any, term: torch.Tensor) -> set[str]:
    modules = modules_of(trainer)
    for p in itertools.chain(*modules.values()):
        p.grad = None
    term.backward(retain_graph=True)
    return {name for name, each in modules.items() if any(p.grad is not None and p.grad.any() for p in each)}


ON_THETA = {"stem_img", "encoder", "theta"}
TABLE = {
    "labelled_xi": {"stem_diff", "encoder", "xi"},
    "labelled_psi": {"stem_img", "encoder", "psi"},
    "labelled_theta": ON_THETA,
    "labelled_correlation": {"head", "stem_img", "encoder"},
    "correlation": {"head", "stem_img", "encoder"},
    **dict.fromkeys(("pseudo", "mix", "mic", "kd", "rec"), ON_THETA),
}


@pytest.mark.parametrize("network", ["plan", VNET])
@pytest.mark.parametrize("space", ["logits", "probs", "features"])
@pytest.mark.parametrize("teachers", ["both", "first", "second"])
def test_what_each_term_trains(teachers: str, space: str, network: str, ready) -> None:
    trainer, batch = ready(teachers=teachers, rec_space=space, pseudo_weight=1.0, network=network)
    terms = trainer.training_losses(batch)
    table = TABLE | ({"rec": {"stem_img", "encoder"}} if space == "features" else {})
    table = {
        name: value for name, value in table.items() if (teachers, name) not in {("first", "rec"), ("second", "kd")}
    }
    assert {name: reached_by(trainer, term) for name, term in terms.items()} == table


@pytest.mark.parametrize("network", ["plan", "residual", VNET])
def test_what_each_term_trains_in_3d(network: str, ready) -> None:
    trainer, batch = ready(3, pseudo_weight=1.0, network=network)
    assert {name: reached_by(trainer, term) for name, term in trainer.training_losses(batch).items()} == TABLE


def test_propagation_without_detaching_trains_the_decoders(ready) -> None:
    trainer, batch = ready(correlation_detach=False)
    terms = trainer.training_losses(batch)
    assert reached_by(trainer, terms["correlation"]) == TABLE["correlation"] | {"theta"}
    assert reached_by(trainer, terms["labelled_correlation"]) == TABLE["correlation"] | {"psi"}
    trainer, batch = ready(correlation_labelled="xi")
    term = trainer.training_losses(batch)["labelled_correlation"]
    assert reached_by(trainer, term) == {"head", "stem_diff", "encoder"}


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("denoising_weight", "labelled_xi"),
        ("difficulty_weight", "labelled_psi"),
        ("theta_labelled_weight", "labelled_theta"),
        ("mix_weight", "mix"),
        ("mic_weight", "mic"),
        ("kd_weight", "kd"),
        ("rec_weight", "rec"),
        ("correlation_weight", "correlation"),
    ],
)
def test_a_term_with_weight_zero_is_left_out(setting: str, name: str, ready) -> None:
    gone = {name, f"labelled_{name}"} if name == "correlation" else {name}
    trainer, batch = ready(**{setting: 0.0})
    assert set(trainer.training_losses(batch)) == {*LABELLED, *UNLABELLED} - gone
    trainer, batch = ready(**{setting: 3.0})
    torch.manual_seed(0)
    large = trainer.training_losses(batch)[name].item()
    trainer, batch = ready(**{setting: 1.0})
    torch.manual_seed(0)
    assert large == pytest.approx(3 * trainer.training_losses(batch)[name].item(), rel=1e-4)


@pytest.mark.parametrize("dim", [2, 3])
def test_terms_are_the_equations(dim: int, ready, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, batch = ready(dim, difficulty="off")
    batch = dataclasses.replace(batch, mask_u=torch.ones_like(batch.mask_u))
    trainer.teacher.load_state_dict(trainer.new_network().state_dict())  # not the student
    lessons = []
    teach = trainer.teachers.teach
    monkeypatch.setattr(type(trainer.teachers), "teach", lambda _, *args: lessons.append(teach(*args)) or lessons[-1])
    terms = trainer.training_losses(batch)
    x_l, y_l = batch.image_l, batch.target_l[0][:, 0].long()
    (lesson,), scales = lessons, trainer.loss.weight_factors

    def deep(outputs: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        return sum(
            w
            * dice_ce(
                z, nn.functional.interpolate(labels[:, None].float(), z.shape[2:], mode="nearest-exact")[:, 0].long()
            )
            for w, z in zip(scales, outputs, strict=False)
            if w
        )

    psi = list(trainer.branches.psi(trainer.network.encoder(x_l)))
    torch.testing.assert_close(terms["labelled_psi"], deep(psi, y_l))
    torch.testing.assert_close(terms["labelled_theta"], 0.5 * trainer.loss(trainer.network(x_l), batch.target_l))
    z_u = trainer.network(batch.image_u_s)[0]
    p = z_u.softmax(1)
    distance = 0.0
    for q in (lesson.first.raw.softmax(1), lesson.first.psi.softmax(1)):
        axes = [0, *range(2, p.ndim)]
        overlap, size = (p * q).sum(axes), (p * p).sum(axes) + (q * q).sum(axes)
        distance = distance + (1 - (2 * overlap + 1e-5) / (size + 1e-5)).mean()
    torch.testing.assert_close(terms["kd"], 0.1 * distance)
    remixed = trainer.branches.head(trainer.network.encoder(batch.image_u_s), z_u.detach())
    assert terms["correlation"].item() == pytest.approx(
        dice_ce(remixed, lesson.labels[:, 0]).item(), abs=0.3
    )  # dropout
    torch.testing.assert_close(lesson.logits, trainer.teacher(torch.cat([x_l, batch.image_u_w]))[0])


def test_masked_terms_are_the_equations(ready, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, batch = ready(mix_weight=0.0, correlation_weight=0.0, kd_weight=0.0, teacher_view="same")
    masked = []
    module = "nnssl_trainers.methods.dtlp.mask_blocks"
    monkeypatch.setattr(module, lambda *args: masked.append(mask_blocks(*args)) or masked[-1])
    terms = trainer.training_losses(batch)
    x_l, x_u = batch.image_l, batch.image_u_s
    zeros = [(x == 0).float().mean().item() for x in masked]
    assert zeros == pytest.approx([0.5, 0.5], abs=0.2)
    assert all(torch.equal(m[m != 0], x[m != 0]) for m, x in zip(masked, (x_u, x_l), strict=True))
    z = [trainer.network(m)[0] for m in masked]
    target = [trainer.teacher(x)[0].detach() for x in (x_u, x_l)]
    expected = 0.1 * relative_l2(torch.cat(z), torch.cat(target))
    torch.testing.assert_close(terms["rec"], expected)
    assert terms["mic"].item() > 0


@pytest.mark.parametrize("labels", ["truth", "teacher"])
def test_partners_have_true_labels_or_the_teachers(labels: str, ready, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, batch = ready(cutmix_labels=labels)
    seen = []
    from nnssl_trainers.methods import dtlp

    mix = dtlp.mix_with_partners
    monkeypatch.setattr(dtlp, "mix_with_partners", lambda *args: seen.append(args) or mix(*args))
    trainer.training_losses(batch)
    ((others, patches),) = seen
    truth = batch.target_l[0].long()
    assert torch.equal(others.labels, truth) == (labels == "truth")
    assert torch.equal(others.image, batch.image_l)
    assert torch.equal(patches.image, batch.image_u_s)


@pytest.mark.parametrize(("view", "expected"), [("weak", "image_u_w"), ("same", "image_u_s")])
def test_the_teachers_view(view: str, expected: str, ready, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, batch = ready(teacher_view=view)
    batch = dataclasses.replace(batch, image_u_s=batch.image_u_w + 1)
    seen = []
    teach = trainer.teachers.teach
    monkeypatch.setattr(type(trainer.teachers), "teach", lambda _, *args: seen.append(args[1]) or teach(*args))
    trainer.training_losses(batch)
    assert torch.equal(seen[0], getattr(batch, expected))


def passes_of(trainer: Any, batch: Any, step: int) -> tuple[set[str], int]:
    """Return the names of the terms at a step, and the number of passes of the diffusion decoder."""
    passes: list[int] = []
    hook = trainer.branches.xi.register_forward_hook(lambda *_: passes.append(1))
    terms = trainer.training_losses(dataclasses.replace(batch, iteration=step))
    hook.remove()
    return set(terms), len(passes)


def test_terms_below_the_least_weight_cost_no_pass(make_trainer) -> None:
    trainer = make_trainer("DTLPTrainer", 2, num_iterations=1000, config={"rampup_share": 1.0})
    trainer.initialize()
    batch = trainer._move_to_device(next(trainer.get_dataloaders()[0]))
    for step in (0, 30, 60, 400, 999):
        ramp = gaussian_rampup(step, 1000)
        named = {name for name, w in trainer.config.unlabelled_weights().items() if ramp * w >= 0.01}
        names, passes = passes_of(trainer, batch, step)
        assert names == {*LABELLED, *named}
        assert passes == 1 + 10 * bool(named - {"rec"})
    assert passes_of(trainer, batch, 30) == (set(LABELLED), 1)  # exp(−5·0.97²) = 0.0091
    assert passes_of(trainer, batch, 60)[1] == 11


def test_the_ramp_multiplies_the_unlabelled_terms_alone(make_trainer) -> None:
    trainer = make_trainer("DTLPTrainer", 2, num_iterations=100, config={"ddim_steps": 2, "rampup_share": 0.5})
    trainer.initialize()
    batch = trainer._move_to_device(next(trainer.get_dataloaders()[0]))
    values = []
    for step in (25, 50):
        torch.manual_seed(0)
        trainer.difficulty.load_state_dict(type(trainer.difficulty)(3).state_dict())
        values.append(trainer.training_losses(dataclasses.replace(batch, iteration=step)))
    for name, value in values[1].items():
        factor = 1 if name in LABELLED else math.exp(-5 * 0.25)
        assert values[0][name].item() == pytest.approx(factor * value.item(), rel=1e-4), name


# ---------------------------------------------------------------------- networks and stages


def test_batch_normalisation_sees_one_view_at_a_time_and_the_teachers_leave_no_trace(ready) -> None:
    trainer, batch = ready(network=VNET)
    assert isinstance(trainer.network, DiffVNet)
    batches: list[int] = []
    trainer.network.register_forward_hook(lambda _, images, __: batches.append(len(images[0])))
    norm, deep = trainer.network.encoder.stem[2], trainer.network.encoder.stages[-1].convolutions[-1][2]
    teacher = copy.deepcopy(trainer.teacher.state_dict())
    trainer.training_losses(batch)
    assert batches == [2] * 5  # x_l, x_u, the mixes, masked x_u, masked x_l
    assert norm.num_batches_tracked == 5
    assert deep.num_batches_tracked == 5 + 1  # and the labelled pass of the diffusion decoder
    assert all(torch.equal(value, teacher[name]) for name, value in trainer.teacher.state_dict().items())
    trainer, batch = ready(network=VNET, quiet_passes=False, teacher_mode="train")
    trainer.training_losses(batch)
    assert trainer.network.encoder.stages[-1].convolutions[-1][2].num_batches_tracked == 6 + 1 + 2  # ψ, two DDIM steps
    assert trainer.teacher.encoder.stem[2].num_batches_tracked == 1


def test_instance_normalisation_needs_one_pass(ready) -> None:
    trainer, batch = ready()
    batches: list[int] = []
    trainer.network.register_forward_hook(lambda _, images, __: batches.append(len(images[0])))
    trainer.training_losses(batch)
    assert batches == [10]


def test_aggregation_comes_before_the_step_and_average_after_it(ready) -> None:
    trainer, batch = ready(theta_aggregation=0.5)
    raw = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    decoders = trainer.branches.xi.decoder, trainer.branches.psi
    key = "seg_layers.1.weight"
    mean = sum(dict(d.named_parameters())[key].detach() for d in decoders) / 2
    trainer.losses_of_step(batch)
    moved = trainer.network.decoder.seg_layers[1].weight
    torch.testing.assert_close(moved.detach(), 0.5 * raw[f"decoder.{key}"] + 0.5 * mean)
    before = trainer.teacher.decoder.seg_layers[1].weight.clone()
    trainer.iteration = 1000
    trainer.finish_step()
    decayed = 0.99 * before + 0.01 * moved.detach()
    torch.testing.assert_close(trainer.teacher.decoder.seg_layers[1].weight, decayed)
    trainer, batch = ready(theta_aggregation=1.0)
    before = trainer.network.decoder.seg_layers[1].weight.clone()
    trainer.losses_of_step(batch)
    assert torch.equal(trainer.network.decoder.seg_layers[1].weight, before)


def same(a: nn.Module, b: nn.Module) -> bool:
    values = [[v for n, v in d.state_dict().items() if not n.startswith("encoder.")] for d in (a, b)]
    return all(torch.equal(x, y) for x, y in zip(*values, strict=True))


@pytest.mark.parametrize("theta", ["psi", "random"])
@pytest.mark.parametrize("xi", ["psi", "random"])
def test_the_method_starts_from_the_supervised_stage(theta: str, xi: str, make_trainer) -> None:
    config = {**SMALL, "supervised_share": 0.5, "ready_dice": 0.0, "theta_start": theta, "xi_start": xi}
    trainer = make_trainer("DTLPTrainer", 2, epoch=6, staged=True, num_iterations=6, config=config)
    trainer.initialize()
    trainer.dataloader_train, _ = trainer.get_dataloaders()
    for _ in range(3):
        trainer.before_step()
        trainer.train_step(next(trainer.dataloader_train))
    trained = copy.deepcopy(trainer.network.decoder)
    fresh_xi = copy.deepcopy(trainer.branches.xi.decoder)
    assert trainer.method_begin is None
    trainer.before_step()
    assert trainer.method_begin == 3
    assert same(trainer.branches.psi, trained)
    assert same(trainer.branches.xi.decoder, trained if xi == "psi" else fresh_xi)
    assert same(trainer.network.decoder, trained) == (theta == "psi")
    assert same(trainer.teacher.decoder, trainer.network.decoder)
    assert "mix" in trainer.losses_of_step(trainer._move_to_device(next(trainer.dataloader_train)))


def test_the_supervised_stage_is_that_of_other_methods(make_trainer) -> None:
    config = {"supervised_share": 0.5}
    ours = make_trainer("DTLPTrainer", 2, staged=True, num_iterations=6, config=config)
    theirs = make_trainer("SupervisedTrainer", 2, num_iterations=3)
    for trainer in (ours, theirs):
        trainer.initialize()
        batch = next(trainer.get_dataloaders()[0])
        for _ in range(2):
            trainer.train_step({"labelled": batch["labelled"]})
    assert ours.supervised_key() == theirs.supervised_key() != ""
    assert all(torch.equal(a, b) for a, b in zip(ours.network.parameters(), theirs.network.parameters(), strict=True))


@pytest.mark.parametrize("deployed", ["theta", "psi", "teacher"])
def test_what_is_deployed_predicts_without_this_method(deployed: str, make_trainer) -> None:
    trainer = make_trainer("DTLPTrainer", 2, config={**SMALL, "deployed": deployed})
    trainer.run_training()
    weights = checkpoints.load(Path(trainer.output_folder) / "checkpoint_final.pth")["network_weights"]
    network = trainer.new_network()
    network.load_state_dict(weights)
    network.decoder.deep_supervision = False
    expected = {"theta": trainer.network, "psi": trainer.psi_network, "teacher": trainer.teacher}[deployed]
    assert list(weights) == list(trainer.network.state_dict())
    image = torch.randn(1, 1, 16, 16)
    expected.decoder.deep_supervision = False
    for net in (network, expected):
        net.eval()
    torch.testing.assert_close(network(image), expected(image))
    others = [net for net in (trainer.network, trainer.psi_network, trainer.teacher) if net not in (None, expected)]
    for other in others:
        other.eval()
        other.decoder.deep_supervision = False
        assert not torch.equal(other(image), expected(image))


def test_a_continued_run_has_the_same_decoders(make_trainer, tmp_path: Path) -> None:
    whole = make_trainer("DTLPTrainer", 2, num_iterations=4, config={**SMALL, "difficulty": "window"})
    whole.initialize()
    stream, _ = whole.get_dataloaders()
    batches = [next(stream) for _ in range(3)]
    for batch in batches[:2]:
        whole.train_step(batch)
    whole.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    whole.train_step(batches[2])
    continued = make_trainer("DTLPTrainer", 2, num_iterations=4, config={**SMALL, "difficulty": "window"})
    continued.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    continued.set_training_mode()
    continued.train_step(batches[2])
    for part in ("branches", "difficulty", "teacher"):
        ours, theirs = (getattr(trainer, part).state_dict() for trainer in (whole, continued))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part


def test_one_optimiser_trains_everything_and_clips_the_whole_gradient(ready) -> None:
    trainer, _ = ready()
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    everything = itertools.chain(trainer.network.parameters(), trainer.branches.parameters())
    assert trained == {id(p) for p in everything}
    assert len(trainer.trained) == 1
    trainer.lr_scheduler.step(4)
    assert len({group["lr"] for group in trainer.optimizer.param_groups}) == 1


# ---------------------------------------------------------------------- presets


def test_the_paper_sets_the_extras_back(ready) -> None:
    trainer, batch = ready(preset="paper", network=VNET, rampup_share=1.0)
    c = trainer.config
    assert (c.theta_start, c.xi_start, c.theta_labelled_weight, c.rampup_share) == ("random", "random", 0.0, 1.0)
    assert (c.supervised_share, c.ready_dice, c.teacher_view, c.least_weight) == (0.0, 0.0, "same", 0.0)
    assert set(trainer.training_losses(batch)) == {*LABELLED, *UNLABELLED} - {"labelled_theta"}
    assert DTLPConfig.presets["paper"]["network"] == "diff_vnet"


def test_adnd_is_three_terms_of_its_own_code(ready, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, batch = ready(preset="adnd", network=VNET, rampup_share=0.5)
    lessons = []
    teach = trainer.teachers.teach
    monkeypatch.setattr(type(trainer.teachers), "teach", lambda _, *args: lessons.append(teach(*args)) or lessons[-1])
    terms = trainer.training_losses(batch)
    assert set(terms) == {"labelled_xi", "labelled_psi", "pseudo"}
    assert trainer.branches.head is None
    assert lessons[0].logits is None
    assert trainer.difficulty.mode == "adnd"
    assert DTLP_ADND["blur_border"] == "zero"
    assert reached_by(trainer, terms["pseudo"]) == ON_THETA


def test_a_protocol_of_the_paper_sets_its_values(make_tiny, make_trainer) -> None:
    folder = make_tiny(2)
    splits = json.loads((folder / "splits_final.json").read_text())
    (folder / "splits_final.json").write_text(json.dumps([{**splits[0], "protocol": "la"}]))
    trainer = make_trainer("DTLPTrainer", 2, config={"kd_weight": 0.4})
    trainer.initialize()
    c = trainer.config
    assert (c.mask_ratio, c.mic_weight, c.kd_weight, c.rec_weight, c.correlation_weight) == (0.7, 2.0, 0.4, 0.2, 1.2)


def test_other_networks_are_refused(make_trainer) -> None:
    trainer = make_trainer("DTLPTrainer", 2, config={"network": "vnet"})
    with pytest.raises(UsageError, match="VNet cannot denoise label maps"):
        trainer.initialize()
