"""Cost of the label refinement as ratios: box sums along one axis at a time against plain n-D average pools.

Time is the median over rounds in which the forms take turns; memory is the peak that the allocator hands out during one
call, result included, in units of the image. Both forms give the same numbers; the greatest difference is printed.

    python -m benchmarks.refinement [--patch 112 112 80] [--batch 2] [--mixed 4] [--rounds 7] [-device cpu] [--share]

`--share` sets the refinement against the networks of a DSMT-Net step at that patch, V-Net and Mamba-UNet as in the
paper: both students forward and backward on the mixed images, the teacher forward.
"""

from __future__ import annotations

import argparse
import os
import statistics

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.steps import Step, seconds
from nnssl.ingredients.refinement import enhance, local_similarity, neighbourhood
from nnssl.networks import load_network


def plain_similarity(image: Tensor, window: int | Tensor) -> Tensor:
    """Return `local_similarity` from average pools over whole windows; a map per side where `window` is a tensor."""
    if isinstance(window, Tensor):
        small, middle, large = (plain_similarity(image, side) for side in (3, 5, 7))
        return torch.where(window | 1 == 3, small, torch.where(window | 1 == 5, middle, large))
    centred = image - image.mean(dim=tuple(range(2, image.dim())), keepdim=True)
    pool = nn.functional.avg_pool2d if image.dim() == 4 else nn.functional.avg_pool3d

    def box(values: Tensor) -> Tensor:
        sides = (window // 2,) * (2 * (image.dim() - 2))
        return pool(nn.functional.pad(values, sides, mode="replicate"), window, 1)

    return -(box(centred.square()) - 2.0 * centred * box(centred) + centred.square()).mean(dim=1, keepdim=True)


def peak_bytes(step: Step, device: torch.device) -> int:
    """Return the most bytes a call holds at a time beyond those held before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    held = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def networks_of_a_step(mixed: Tensor) -> Step:
    """Return the passes of two students and a teacher on the mixed images."""
    strides = [[1] * (mixed.dim() - 2)] + [[2] * (mixed.dim() - 2)] * 4
    names = ("vnet", "mamba_unet", "vnet")
    one, two, teacher = (load_network(name, 1, 2, mixed.shape[2:], strides).to(mixed.device) for name in names)

    def passes() -> None:
        with torch.no_grad():
            teacher(mixed)
        for student in (one, two):
            student.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(student(mixed), torch.zeros_like(mixed[:, 0]).long()).backward()

    return passes


def main() -> None:
    """Print times, memory and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs="+", default=[112, 112, 80])
    parser.add_argument("--batch", type=int, default=2, help="images of the similarity")
    parser.add_argument("--mixed", type=int, default=4, help="images that two students refine")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--share", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    image = torch.rand(arguments.batch, 1, *arguments.patch, device=device)
    window = torch.randint(3, 8, image.shape, device=device)
    mixed = torch.rand(arguments.mixed, 1, *arguments.patch, device=device)
    students = [torch.randn(arguments.mixed, 2, *arguments.patch, device=device).softmax(1) for _ in range(2)]

    def both_students() -> list[Tensor]:
        around = neighbourhood(mixed)
        return [enhance(probs, around) for probs in students]

    if arguments.share:
        with_graph = networks_of_a_step(mixed)
        times = seconds({"networks": with_graph, "refinement": both_students}, arguments.rounds, 1, synchronise)
        ratios = [b / (a + b) for a, b in zip(times["networks"], times["refinement"], strict=True)]
        print(f"networks {statistics.median(times['networks']):.2f} s, ", end="")
        print(f"refinement {statistics.median(times['refinement']):.2f} s, ", end="")
        print(f"share of both {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        return
    steps: dict[str, Step] = {
        "plain, window 7": lambda: plain_similarity(image, 7),
        "separable, window 7": lambda: local_similarity(image, 7),
        "plain, windows 3 to 7": lambda: plain_similarity(image, window),
        "separable, windows 3 to 7": lambda: local_similarity(image, window),
        "image part": lambda: neighbourhood(mixed),
        "image part and two students": both_students,
    }
    with torch.no_grad():
        times = seconds(steps, arguments.rounds, 1, synchronise)
        memory = {name: peak_bytes(step, device) for name, step in steps.items()}
        for name, values in times.items():
            size = mixed.nbytes if "part" in name else image.nbytes
            print(f"{name:<30} {statistics.median(values):8.4f} s   peak {memory[name] / size:6.2f} images")
        for kind, side in (("window 7", 7), ("windows 3 to 7", window)):
            pairs = zip(times[f"plain, {kind}"], times[f"separable, {kind}"], strict=True)
            ratios = [a / b for a, b in pairs]
            spread = f"({min(ratios):.1f} to {max(ratios):.1f})"
            difference = (plain_similarity(image, side) - local_similarity(image, side)).abs().max().item()
            print(
                f"plain / separable, {kind:<16} {statistics.median(ratios):.1f} {spread}, difference {difference:.1e}"
            )


if __name__ == "__main__":
    main()
