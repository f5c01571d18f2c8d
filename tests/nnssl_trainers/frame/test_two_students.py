from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from nnssl.errors import UsageError
from nnssl.system.files import read_json

SMALL = {"student2": "mamba_unet:width=8,state_size=2", "pretrain_least": 0}


@pytest.fixture
def ready(make_trainer):
    """Return a function that makes an initialised DSMTTrainer, a method with two students."""

    def make(num_iterations: int = 8, **config):
        trainer = make_trainer("DSMTTrainer", 2, num_iterations=num_iterations, config={**SMALL, **config})
        trainer.initialize()
        trainer.set_training_mode()
        return trainer

    return make


@pytest.mark.parametrize(
    ("total", "config", "expected"),
    [
        (40_000, {}, 10_000),
        (3_000, {}, 1_500),
        (6_000, {}, 2_000),
        (1_000, {}, 500),
        (1_000, {"pretrain_share": 0.75}, 750),
        (1_000, {"pretrain_least": 0}, 250),
        (1_000, {"pretrain_least": 0, "pretrain_share": 0.0}, 0),
    ],
)
def test_length_of_pretraining(total: int, config, expected: int, make_trainer) -> None:
    assert make_trainer("DSMTTrainer", 2, num_iterations=total, config=config).pretrain_iterations == expected


def test_a_run_that_becomes_longer_keeps_the_length_of_its_finished_pretraining(ready, make_trainer, tmp_path) -> None:
    file = str(tmp_path / "checkpoint_latest.pth")
    for iteration, expected in ((2, 2), (1, 4)):  # pre-training of the short run takes 2 of 8 iterations
        short = ready(8)
        short.iteration = iteration
        short.save_checkpoint(file)
        longer = make_trainer("DSMTTrainer", 2, num_iterations=16, config=SMALL)
        longer.load_checkpoint(file)
        assert longer.pretrain_iterations == expected


@pytest.mark.parametrize(("optimizer", "factor"), [("auto", 0.25), ("sgd", 1.0)])
def test_the_learning_rate_of_adamw_takes_the_weight_of_the_loss(optimizer: str, factor: float, ready) -> None:
    trainer = ready(100, pretrain_share=0.0, optimizer=optimizer)
    trainer.lr_scheduler.step(50)
    for (_, one), own in zip(trainer.trained, (1.0, factor), strict=True):
        for group in one.param_groups:
            assert group["lr"] == pytest.approx(one.defaults["lr"] * 0.5**0.9 * own)


def test_schedules_start_again_after_pretraining(ready) -> None:
    trainer = ready(100, pretrain_share=0.2, optimizer="sgd")
    for iteration, progress in ((0, 0.0), (10, 0.1), (20, 0.0), (60, 0.5), (100, 1.0)):
        assert trainer.learning_rate_factors(iteration) == pytest.approx([(1 - progress) ** 0.9] * 2)


def test_both_optimisers_lose_their_momentum(ready) -> None:
    trainer = ready()
    stream, _ = trainer.get_dataloaders()
    trainer.train_step(next(stream))
    assert all(optimizer.state for _, optimizer in trainer.trained)
    trainer.restart_optimizers()
    assert not any(optimizer.state for _, optimizer in trainer.trained)


def test_networks_with_batch_normalisation_take_batches_apart(ready) -> None:
    images = [torch.randn(1, 1, 16, 16), torch.randn(2, 1, 16, 16)]
    for network, passes in (("plan", [3]), ("unet_bcp", [1, 2])):
        trainer = ready(network=network)
        seen: list[int] = []
        trainer.network.register_forward_pre_hook(lambda _, arguments, seen=seen: seen.append(len(arguments[0])))
        outputs = trainer.outputs_of(trainer.network, images)
        assert seen == passes
        assert [len(batch[0]) for batch in outputs] == [1, 2]


@pytest.mark.parametrize("student2", ["plan", "unet_bcp"])
def test_all_outputs_of_both_students(student2: str, ready) -> None:
    trainer = ready(student2=student2)
    images = [torch.randn(1, 1, 16, 16), torch.randn(2, 1, 16, 16)]
    for student in trainer.students:
        for module in student.modules():
            if isinstance(module, _DropoutNd):
                module.p = 0.0
        for batch, image in zip(trainer.outputs_of(student, images), images, strict=True):
            assert len(batch) == 2  # the tiny plan has three stages
            for found, expected in zip(batch, student(image), strict=True):
                torch.testing.assert_close(found, expected)


def test_a_run_with_one_student(ready) -> None:
    trainer = ready(student2="none")
    assert trainer.students == [trainer.network]
    assert [optimizer for _, optimizer in trainer.trained] == [trainer.optimizer]
    assert "student2" not in trainer.state()


@pytest.mark.parametrize("deployed", ["student1", "student2", "teacher"])
def test_the_deployed_network_is_the_one_that_is_named(deployed: str, ready) -> None:
    trainer = ready(deployed=deployed)
    wanted = {"student1": trainer.network, "student2": trainer.network2, "teacher": trainer.teacher}
    assert trainer.deployed is wanted[deployed]


def test_the_deployed_mean_is_that_of_the_probabilities(ready) -> None:
    trainer = ready(deployed="mean", student2="plan")
    trainer.set_deep_supervision_enabled(False)
    image = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        mean = torch.stack([student.eval()(image).softmax(1) for student in trainer.students]).mean(0)
        torch.testing.assert_close(trainer.deployed.eval()(image).softmax(1), mean)


@pytest.mark.parametrize("deployed", ["student1", "teacher", "student2", "mean"])
def test_plans_of_the_run_build_the_deployed_network(deployed: str, make_trainer) -> None:
    trainer = make_trainer("DSMTTrainer", 2, epoch=2, num_iterations=2, config={**SMALL, "deployed": deployed})
    trainer.run_training()
    folder = Path(trainer.output_folder)
    entry = read_json(folder.parent / "plans.json")["configurations"]["2d"]["architecture"]
    network = get_network_from_plans(*entry.values(), 1, 3, allow_init=False, deep_supervision=False)
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    network.load_state_dict(checkpoint["network_weights"])
    image = torch.randn(1, 1, 16, 16)
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(image), trainer.deployed.eval()(image))
    assert checkpoint["trainer_name"] == "nnUNetTrainer"


def test_plans_that_were_given_are_not_changed(make_trainer) -> None:
    trainer = make_trainer("DSMTTrainer", 2, config={"deployed": "student2"})
    again = make_trainer("DSMTTrainer", 2)
    plan = again.plans_manager.plans["configurations"]["2d"]["architecture"]
    assert plan["network_class_name"].endswith("PlainConvUNet")
    assert "MambaUNet" in trainer.plans_manager.plans["configurations"]["2d"]["architecture"]["network_class_name"]


@pytest.mark.parametrize(("dim", "width"), [(2, 12), (3, 6)])  # the tiny plan has 4 features in its first stage
def test_the_width_of_mamba_follows_the_plan(dim: int, width: int, make_trainer) -> None:
    assert make_trainer("DSMTTrainer", dim).architectures[1]["arch_kwargs"]["width"] == width


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"student2": "none", "deployed": "student2"}, "no student 2"),
        ({"student2": "none", "deployed": "mean"}, "no student 2"),
        ({"network": "unet"}, "mamba_unet"),
        ({"network": "none"}, "plan"),
        ({"student2": "no.such.Network"}, "no.such.Network"),
        ({"student2": "os.path"}, "os.path"),
    ],
)
def test_impossible_students_are_errors(config, said: str, make_trainer) -> None:
    with pytest.raises(UsageError) as raised:
        make_trainer("DSMTTrainer", 2, config=config)
    assert said in str(raised.value)


def test_a_method_can_need_both_students(make_trainer) -> None:
    with pytest.raises(UsageError, match="CCETrainer needs two students") as raised:
        make_trainer("CCETrainer", 2, config={"student2": "none"})
    assert raised.value.run == "--set student2=plan"


def test_student_2_continues_with_a_checkpoint(ready, make_trainer, tmp_path) -> None:
    stopped = ready()
    with torch.no_grad():
        for parameter in stopped.network2.parameters():
            parameter.fill_(0.5)
    stopped.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    continued = make_trainer("DSMTTrainer", 2, num_iterations=8, config=SMALL)
    continued.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    assert isinstance(continued.network2, nn.Module)
    assert all(torch.equal(p, torch.full_like(p, 0.5)) for p in continued.network2.parameters())
