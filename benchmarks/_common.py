"""Shared timing harness: interleaved rounds, medians with spread, paired ratios, one report."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
import torch_geometric
from torch import Tensor

from pgnn_geo.app.memory import keep_freed_memory
from pgnn_geo.io.files import atomic_write


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every benchmark shares."""
    out = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    out.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    out.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    out.add_argument("--seconds", type=float, default=2.0, help="time spent on each rival")
    out.add_argument("--quick", action="store_true", help="smallest cases only")
    out.add_argument(
        "--processor-time",
        action="store_true",
        help="seconds of the processor, not of the clock: for a machine that others use too",
    )
    out.add_argument("--readme", action="store_true", help="put the tables into README.md")
    out.add_argument(
        "--keep-memory", action="store_true", help="let the C library keep freed memory"
    )
    out.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="where to write"
    )
    return out


@dataclass
class Timing:
    """Seconds per call, one entry per round in which the rival took part."""

    by_round: dict[int, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return statistics.median(self.by_round.values())

    @property
    def iqr(self) -> float:
        """Distance between the quartiles, in seconds."""
        q = torch.tensor(list(self.by_round.values()), dtype=torch.double).quantile(
            torch.tensor([0.25, 0.75], dtype=torch.double)
        )
        return float(q[1] - q[0])

    def ratio(self, reference: Timing) -> float:
        """Median over the rounds that both ran of this time over the reference's."""
        # Paired within a round: whatever slows the machine for a while slows both.
        rounds = self.by_round.keys() & reference.by_round.keys()
        return statistics.median(self.by_round[r] / reference.by_round[r] for r in rounds)


def measure(
    rivals: Mapping[str, Callable[[], Any]],
    device: str | torch.device = "cpu",
    seconds: float = 2.0,
    max_rounds: int = 101,
    min_rounds: int = 5,
    processor_time: bool = False,
) -> dict[str, Timing]:
    """Times callables against each other in one process, a sample of each per round.

    Args:
        rivals: Callables without arguments, by name.
        device: Device whose queue is emptied before the clock is read. (default: `"cpu"`)
        seconds: Time to spend on each rival. A slow rival sits rounds out rather than hold up
            the others. (default: `2.0`)
        max_rounds: Rounds, if time allows. (default: `101`)
        min_rounds: Rounds that even the slowest rival runs. (default: `5`)
        processor_time: Take the time of this process's threads, not that of the clock; on the CPU
            only. (default: `False`)
    """
    cuda = torch.device(device).type == "cuda"
    if cuda and processor_time:
        raise SystemExit("--processor-time: a GPU's time is none of the processor's")

    def clock() -> float:
        if processor_time:
            return process_time()
        if cuda:
            torch.cuda.synchronize(device)
        return perf_counter()

    timers, number, every = {}, {}, {}
    for name, fn in rivals.items():
        timers[name] = timeit.Timer(fn, timer=clock)  # switches the garbage collector off
        once = min(timers[name].repeat(repeat=3, number=1))  # the first of them warms up
        number[name] = max(1, round(min(1e-3, seconds / max_rounds) / once))
        rounds = seconds / (number[name] * once)
        every[name] = max(1, min(max_rounds // min_rounds, round(max_rounds / rounds)))
    out = {name: Timing() for name in rivals}
    names = list(rivals)
    for r in range(max_rounds):
        names = names[1:] + names[:1]  # no rival always follows the same one
        for name in names:
            if r % every[name] == 0:
                out[name].by_round[r] = timers[name].timeit(number[name]) / number[name]
    gc.collect()
    return out


def saved_bytes(fn: Callable[[], Any], exclude: tuple[Tensor, ...] = ()) -> int:
    """Bytes that autograd keeps for the backward pass of one call (each storage once).

    Args:
        fn: The forward pass.
        exclude: Tensors that live anyway, such as inputs and parameters.
    """
    known = {t.untyped_storage().data_ptr() for t in exclude}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = fn()  # held until counted, so that no address is used twice
    total = sum(kept.values())
    del result
    return total


def peak_bytes(fn: Callable[[], Any], device: str | torch.device = "cpu") -> int:
    """Largest number of bytes that one call holds on top of what was allocated before it."""
    fn()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        fn()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], profile_memory=True) as profile:
        fn()
    held = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def free_bytes(device: str | torch.device = "cpu") -> int:
    """Bytes of memory that are free."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def machine(device: str | torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as f:
            cpu = next((s.split(":")[1].strip() for s in f if s.startswith("model name")), cpu)
    out: dict[str, Any] = {"cpu": cpu, "threads": torch.get_num_threads()}
    if torch.device(device).type == "cuda":
        out["gpu"] = torch.cuda.get_device_name(device)
    out |= {
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_geometric": torch_geometric.__version__,
        "torch_scatter": torch_geometric.typing.WITH_TORCH_SCATTER,
    }
    return out


class Report:
    """Collects the cases of one benchmark; writes JSON, a Markdown table and a plot.

    Args:
        name: File name without suffix.
        args: Parsed arguments of :func:`parser`; sets the number of threads.
    """

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        torch.set_num_threads(args.threads)
        self.name, self.args = name, args
        kept = args.keep_memory and keep_freed_memory()
        self.machine = machine(args.device) | {"freed memory": "kept" if kept else "returned"}
        self.machine["time"] = "processor" if args.processor_time else "clock"
        self.cases: list[dict[str, Any]] = []

    def run(
        self,
        case: Mapping[str, Any],
        rivals: Mapping[str, Callable[[], Any]],
        reference: str,
        extra: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, float]:
        """Measures one case, prints it and returns each rival's time over the reference's.

        Args:
            case: What identifies the case, such as `{"groups": 64, "n": 51}`.
            rivals: Callables without arguments, by name.
            reference: The rival that the others are divided by.
            extra: More columns by rival, such as `{"ours": {"saved MB": 3.1}}`.
        """
        timings = measure(
            rivals,
            self.args.device,
            self.args.seconds,
            processor_time=self.args.processor_time,
        )
        ratios = {name: t.ratio(timings[reference]) for name, t in timings.items()}
        for name, t in timings.items():
            row = {
                **case,
                "rival": name,
                "ms": 1e3 * t.median,
                "iqr ms": 1e3 * t.iqr,
                "ratio": ratios[name],
                "rounds": len(t.by_round),
                **(extra or {}).get(name, {}),
            }
            self.cases.append(row)
            print("  ".join(f"{k}={_text(v)}" for k, v in row.items()), flush=True)
        return ratios

    def write(self, x: str | None = None, where: Mapping[str, Any] | None = None) -> None:
        """Writes `name.json` and `name.md`, and `name.png` if `x` is given.

        Args:
            x: The case's key to plot the cost against; rows where it is no number are left out.
                (default: `None`)
            where: Plot only the rows that agree with these values. (default: `None`)
        """
        out: Path = self.args.out
        out.mkdir(parents=True, exist_ok=True)
        stem = self.name + ("" if self.args.device == "cpu" else "-cuda")
        with atomic_write(out / f"{stem}.json") as f:
            report = {"machine": self.machine, "cases": self.cases}
            f.write(json.dumps(report, indent=1).encode())
        with atomic_write(out / f"{stem}.md") as f:
            f.write(self.table().encode())
        if x is not None:
            with atomic_write(out / f"{stem}.png") as f:
                self._plot(x, where or {}).savefig(f, format="png", dpi=120)

    def table(self) -> str:
        """The cases as a Markdown table under a line that describes the machine."""
        columns = list(dict.fromkeys(k for row in self.cases for k in row if k != "rounds"))
        lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        lines += [
            "| " + " | ".join(_text(row.get(c, "")) for c in columns) + " |" for row in self.cases
        ]
        about = ", ".join(f"{k} {_text(v)}" for k, v in self.machine.items())
        return f"{about}\n\n" + "\n".join(lines) + "\n"

    def _plot(self, x: str, where: Mapping[str, Any]) -> Any:
        import matplotlib
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.add_subplot(xlabel=x, ylabel="ms per call", xscale="log", yscale="log")
        rows = [r for r in self.cases if all(r.get(k) == v for k, v in where.items())]
        rows = [r for r in rows if isinstance(r.get(x), (int, float))]
        axes.set_prop_cycle(color=matplotlib.color_sequences["tab20"])
        for name in dict.fromkeys(r["rival"] for r in rows):
            mine = sorted((r for r in rows if r["rival"] == name), key=lambda r: r[x])
            axes.errorbar(
                [r[x] for r in mine],
                [r["ms"] for r in mine],
                # Half the quartile distance; a log axis cannot show a bar that reaches zero.
                yerr=[min(r["iqr ms"] / 2, 0.9 * r["ms"]) for r in mine],
                marker="o",
                markersize=4,
                label=name,
            )
        axes.grid(which="both", alpha=0.2)
        figure.legend(loc="outside right upper", fontsize="small")
        return figure


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
