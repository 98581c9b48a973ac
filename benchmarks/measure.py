"""What the benchmarks share: interleaved timing, the machine's facts, a table and its JSON."""

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

PEERS = ("diffusers", "lucidrains")
RESULTS = Path("runs/benchmarks")


def seconds(work: Callable[[], Any], device: str = "cpu", times: int = 1) -> float:
    """How long something takes, to the end of what it starts on a GPU; the mean of so many times in a row."""
    wait(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return (time.perf_counter() - start) / times


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def interleaved(
    sides: Mapping[str, Callable[[], Any]], rounds: int, device: str = "cpu", warm: int = 1, times: int = 1
) -> dict[str, float]:
    """The median seconds of each, `times` in a row in turn, round after round, after `warm` ones that do not count."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(warm + rounds):
        for name, work in sides.items():
            found[name].append(seconds(work, device, times))
    return {name: median(values[warm:]) for name, values in found.items()}


def machine(device: str) -> dict[str, Any]:
    """Where figures were made."""
    facts: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if device.startswith("cuda"):
        return facts | {"device": torch.cuda.get_device_name()}
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), "CPU")
    units = [name for name in ("avx512f", "avx512_bf16", "amx_bf16") if f" {name} " in info.replace("\n", " ")]
    return facts | {"device": model, "cores": os.cpu_count(), "units": units}


def report(name: str, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: Path | None) -> None:
    """Prints rows of equal keys as a table of Markdown, after a line of facts; writes both as JSON."""
    file = path or RESULTS / f"{name}.json"
    print("\n" + line(facts))
    head = list(rows[0])
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(_text(value) for value in row.values()) + " |")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        json.dumps({"benchmark": name, "facts": facts, "rows": rows}, indent=1, default=str) + "\n", encoding="utf-8"
    )
    print(f"\nwritten to {file}")


def line(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in facts.items())


def _text(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return " ".join(value) if isinstance(value, list) else str(value)


def options(what: str, sizes: Sequence[str] = ("digits", "cifar10")) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {what}")
    parser.add_argument("--against", default=",".join(PEERS), help=f"which of {', '.join(PEERS)}, or none")
    parser.add_argument("--size", default=sizes[0], choices=sizes, help="whose configuration")
    parser.add_argument("--batch", type=int, help="images at once; the configuration's, and 16 for cifar10 on a CPU")
    parser.add_argument("--rounds", type=int, help="of which the medians are taken")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help=f"where the figures are written; {RESULTS}/…")
    return parser


def peers(words: str) -> list[str]:
    """The peers named.

    Raises:
        SystemExit: where there is no such peer.
    """
    named = [word for word in words.split(",") if word and word != "none"]
    if stray := [word for word in named if word not in PEERS]:
        raise SystemExit(f"error: there is no peer {stray[0]}: give some of {','.join(PEERS)}, or none")
    return named


def complete(path: Path) -> dict[str, Any]:
    """A config with all that it leaves out: defaults, and the shape of its model's images."""
    from diffusion_lightning.cli.fit import described

    config = yaml.safe_load(described(["--config", str(path)]))
    model = config["model"]["init_args"]
    if model["shape"] is None:
        network = model["network"]["init_args"]
        model["shape"] = [network["in_channels"], network["size"], network["size"]]
    return config
