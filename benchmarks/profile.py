"""Where a training step's time goes: ours and the peers', part by part.

    python -m benchmarks profile --size cifar10|digits [--precision bfloat16|float32] --against diffusers

Forward, loss, backward, clip, optimizer and average; of the peers their whole loops, which load images too. By
PyTorch's profiler, milliseconds a step of the operations themselves: on a CPU of what computes, on a GPU of its
kernels; the rest of the wall's time, in which nothing of these runs, is the last row but one. (On a GPU, where the
profiler slows what starts the kernels, the wall's time is that of steps without it.) The operations of either side, the
longest first, are written as text beside the JSON.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from diffusion_lightning.modules.base import memory

from . import peers
from .gains import Step
from .measure import RESULTS, line, machine, options, report, seconds
from .measure import peers as named
from .peers import Task
from .train import WARM, network, recipe, write_images

# The first part, a word of which is in the name of an operation or of a kernel, has it.
PARTS = {
    "compiled code": ("triton", "cpp_fused", "CompiledFxGraph"),
    "attention": ("attention", "softmax", "sdpa", "flash", "fmha", "dq_to_16bits", "dot_do_o"),
    "convolutions": ("conv", "xmma", "fprop", "dgrad", "wgrad"),
    "optimizer, clip, average": (
        "adam", "Optimizer", "multi_tensor", "lerp", "vector_norm", "addcdiv", "addcmul", "sqrt",
    ),
    "random draws": ("random", "bernoulli", "dropout", "normal_", "distribution"),
    "normalisation": ("norm", "Norm", "Moments", "GammaBeta", "InternalGradients"),
    "activations": ("silu",),
    "copies, casts, joins": ("copy", "cat", "Cat", "clone", "nchwTo", "nhwcTo"),
    "products of matrices": ("mm", "nvjet", "gemv"),
    "sums, products and the rest": ("",),
}  # fmt: skip
NOTHING = "nothing of these"
LONGEST = 25  # operations that are written
Found = dict[str, tuple[dict[str, float], float]]  # of each side the operations' milliseconds, and the wall's


def operations(step: Callable[[], None], device: str, rounds: int) -> tuple[dict[str, float], float]:
    """Milliseconds a step of each operation by itself, and of the wall's clock."""
    for _ in range(WARM):
        step()
    on_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]

    bare = seconds(step, device, rounds) if on_gpu else 0.0
    with profile(activities=activities) as found:
        wall = seconds(step, device, rounds)
    times: Counter[str] = Counter()
    for event in found.key_averages():
        micro = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if event.device_type == (DeviceType.CUDA if on_gpu else DeviceType.CPU) and not event.is_user_annotation:
            times[event.key] += micro / 1e3 / rounds
    return dict(times.most_common()), 1e3 * (bare or wall)


def parts(times: dict[str, float], wall: float) -> dict[str, float]:
    found = dict.fromkeys(PARTS, 0.0)
    for name, value in times.items():
        found[next(part for part, words in PARTS.items() if any(word in name for word in words))] += value
    return found | {NOTHING: max(0.0, wall - sum(found.values()))}


def main(args: Sequence[str]) -> None:
    parser = options("profile", sizes=("cifar10", "digits"))
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"))
    given = parser.parse_args(args)
    on_gpu, config, who = given.device.startswith("cuda"), recipe(given.size), named(given.against)
    batch = given.batch or (128 if given.size == "digits" or on_gpu else 16)
    rounds = given.rounds or (20 if on_gpu or given.size == "digits" else 3)
    shape = tuple(config["model"]["init_args"]["shape"])
    flip = config["data"]["init_args"].get("flip", False)
    task = Task(shape, batch, given.precision, given.device, WARM + rounds, flip)
    theirs: Found = {}
    with tempfile.TemporaryDirectory() as root:
        write_images(given.size, Path(root))
        for name in who:
            peer = peers.made(name, task, network(given.size), Path(root) / "images")
            theirs[name] = operations(peer.step, given.device, rounds)
            del peer
    memory.keep_freed()  # ours is the last to run, since this stays
    ours = Step(given.size, batch, given.device, given.precision == "bfloat16", compiled=on_gpu)
    found: Found = {"ours": operations(ours, given.device, rounds), **theirs}
    shares = {name: parts(*value) for name, value in found.items()}
    rows: list[dict[str, Any]] = [
        {"part": part} | {f"{name}, ms a step": shares[name][part] for name in found}
        for part in (*PARTS, NOTHING)
        if any(share[part] for share in shares.values())
    ]
    rows.append({"part": "a step"} | {f"{name}, ms a step": wall for name, (_, wall) in found.items()})
    facts = machine(given.device) | {"size": given.size, "batch": batch, "precision": given.precision, "rounds": rounds}
    name = f"profile-{given.size}-{given.precision}-{torch.device(given.device).type}"
    path = given.json or RESULTS / f"{name}.json"
    report(name, facts, rows, path)
    path.with_suffix(".txt").write_text(listed(found, facts), encoding="utf-8")
    print(f"the operations in {path.with_suffix('.txt')}")


def listed(found: Found, facts: dict[str, Any]) -> str:
    lines = [line(facts)]
    for name, (times, wall) in found.items():
        lines += ["", f"{name}: {wall:.1f} ms a step, of which", f"{'ms':>9}  share  operation"]
        lines += [f"{ms:9.1f}  {ms / wall:5.1%}  {key[:200]}" for key, ms in list(times.items())[:LONGEST]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
