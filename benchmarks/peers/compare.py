"""Partwise and its peers at the same work: FedAvg on MNIST, 1000 clients, on a CPU. See docs/benchmarks.md.

    python benchmarks/peers/compare.py [--only loop,partwise,pfl] [--model mlp] [--cohort 10] [--passes 5]
                                       [--rounds 30] [--out FILE]

Each run is a process of its own; in a pass every framework runs once, so that they take turns. The milliseconds of a
run are the median of its rounds after the first two; ratios are to `loop` in the same pass; the tables give the median
over passes, and the range. The seed differs from pass to pass. Memory is measured afterwards, in a run that is not
timed. A framework that fails is named with its error; the others go on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from environments import HERE, python_of

sys.path.insert(0, str(HERE.parent))
from machine import describe
from memory import Peak

SEED = 1  # of the first pass
NOT_COUNTED = 2  # rounds: the first is start-up, the second still fills caches
MEMORY_ROUNDS = 4
MODELS, COHORTS = ("mlp", "cnn"), (10, 50)


class Entry(NamedTuple):
    """environment: the peer's; empty for that of this process. variant: what the script is told."""

    environment: str
    script: str
    variant: str = ""


ENTRIES = {
    "loop": Entry("", "loop.py"),
    "partwise": Entry("", "ours.py", "plain"),
    "partwise-pool": Entry("", "ours.py", "pool"),
    "partwise-stacked": Entry("", "ours.py", "stacked"),
    "partwise-auto": Entry("", "ours.py", "auto"),
    "flower": Entry("flower", "flower/run.py"),
    "pfl": Entry("pfl", "pfl/run.py"),
    "fedjax": Entry("fedjax", "fedjax/run.py", "jit"),
    "fedjax-pmap": Entry("fedjax", "fedjax/run.py", "pmap"),
    "fedlab": Entry("fedlab", "fedlab/run.py"),
}


class Setting(NamedTuple):
    model: str
    cohort: int


class Run(NamedTuple):
    """What a process found: its report, and the peak memory of all its processes."""

    report: dict[str, Any]
    peak_mib: float

    @property
    def milliseconds(self) -> float:
        return 1e3 * statistics.median(self.report["seconds"][NOT_COUNTED - 1 :])


def run(entry: Entry, setting: Setting, arguments: argparse.Namespace, seed: int, *, watch: bool = False) -> Run:
    """One process. watch: its memory, in a few rounds.

    Raises:
        RuntimeError: it failed, or took longer than allowed; the last line it wrote.
    """
    python = python_of(entry.environment) if entry.environment else Path(sys.executable)
    rounds = MEMORY_ROUNDS if watch else arguments.rounds
    command = [str(python), str(HERE / entry.script), "--model", setting.model, "--cohort", str(setting.cohort)]
    command += ["--rounds", str(rounds), "--seed", str(seed), "--threads", str(arguments.threads)]
    command += ["--variant", entry.variant] if entry.variant else []
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(_paths(entry))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        with Peak(process.pid) if watch else nullcontext() as peak:
            output, errors = process.communicate(timeout=arguments.timeout)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise RuntimeError(f"took longer than {arguments.timeout} seconds") from error
        raise
    if process.returncode:
        said = errors.strip().splitlines()
        raise RuntimeError(said[-1] if said else f"ended with {process.returncode}")
    return Run(json.loads(output.strip().splitlines()[-1]), peak.mib if peak else math.nan)


def _paths(entry: Entry) -> list[str]:
    """What a runner imports: this folder and the one above; the package itself only where it runs."""
    own = [str(HERE), str(HERE.parent)]
    return own if entry.environment else [*own, str(HERE.parents[1] / "src")]


class Found(NamedTuple):
    """All that is known of one setting: runs by name, pass by pass; the run for memory; errors by name."""

    runs: dict[str, list[Run]]
    watched: dict[str, Run]
    faults: dict[str, str]


def measure(names: Sequence[str], setting: Setting, arguments: argparse.Namespace) -> Found:
    found = Found({name: [] for name in names}, {}, {})
    turns = [(number, name) for number in range(arguments.passes + 1) for name in names]
    for number, name in turns:
        if name in found.faults:
            continue
        last = number == arguments.passes
        what = "memory" if last else f"pass {number + 1} of {arguments.passes}"
        print(f"{setting.model}, {setting.cohort} clients, {what}: {name}", file=sys.stderr, flush=True)
        try:
            result = run(ENTRIES[name], setting, arguments, SEED + number, watch=last)
        except RuntimeError as error:
            found.faults[name] = str(error)
        else:
            if last:
                found.watched[name] = result
            else:
                found.runs[name].append(result)
    return found


def spread(values: Sequence[float], form: str) -> str:
    return f"{format(statistics.median(values), form)} ({format(min(values), form)}-{format(max(values), form)})"


def table(found: Found, setting: Setting, arguments: argparse.Namespace) -> list[str]:
    head = ("framework", "time / loop", "ms a round", "first round, s", "accuracy", "peak MiB")
    lines = [
        f"### {setting.model}, {setting.cohort} clients a round",
        "",
        "| " + " | ".join(head) + " |",
        "|---" + "|---:" * (len(head) - 1) + "|",
    ]
    loop = found.runs["loop"]
    for name, runs in found.runs.items():
        if name in found.faults:
            lines.append(f"| {name} | failed |" + " |" * (len(head) - 2))
            continue
        ratios = [r.milliseconds / base.milliseconds for r, base in zip(runs, loop, strict=False)]
        cells = (
            name,
            spread(ratios, ".2f") if ratios else "",
            spread([r.milliseconds for r in runs], ".1f"),
            spread([r.report["first_seconds"] for r in runs], ".1f"),
            spread([100 * r.report["accuracy"] for r in runs], ".1f"),
            format(found.watched[name].peak_mib, ".0f"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"- {name} failed: {fault}" for name, fault in found.faults.items())]
    return lines + [""] * bool(found.faults)


def versions(all_found: Sequence[Found]) -> list[str]:
    lines = ["| framework | version | threads |", "|---|---|---|"]
    reports = {name: runs[0].report for found in all_found for name, runs in found.runs.items() if runs}
    return lines + [f"| {name} | {r['version']} | {r['threads']} |" for name, r in reports.items()] + [""]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"some of {', '.join(ENTRIES)}, by commas")
    parser.add_argument("--model", choices=MODELS, help="both by default")
    parser.add_argument("--cohort", type=int, help=f"{COHORTS[0]} and {COHORTS[1]} by default")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2, help="of torch, and Flower's actors")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds that one process may take")
    parser.add_argument("--out", type=Path, help="where the tables are written too")
    arguments = parser.parse_args()
    unknown = sorted({name for name in arguments.only.split(",") if name} - set(ENTRIES))
    if unknown:
        parser.error(f"--only: must name some of {', '.join(ENTRIES)}, got {', '.join(unknown)}.")
    if arguments.rounds <= NOT_COUNTED:
        parser.error(f"--rounds: must be above {NOT_COUNTED}, which are not counted, got {arguments.rounds}.")
    return arguments


def main() -> None:
    arguments = options()
    chosen = arguments.only.split(",") if arguments.only else list(ENTRIES)
    names = ["loop", *(name for name in ENTRIES if name in chosen and name != "loop")]  # ratios need the loop
    settings = [
        Setting(model, cohort)
        for model in ([arguments.model] if arguments.model else MODELS)
        for cohort in ([arguments.cohort] if arguments.cohort else COHORTS)
    ]
    lines = [
        describe(SEED),
        "",
        f"{arguments.passes} passes of {arguments.rounds} rounds, {arguments.threads} threads; medians and ranges.",
        "",
    ]
    print("\n".join(lines), flush=True)
    all_found = []
    for setting in settings:
        found = measure(names, setting, arguments)
        all_found.append(found)
        part = table(found, setting, arguments)
        lines += part
        print("\n".join(part), flush=True)
    lines += versions(all_found)
    print("\n".join(versions(all_found)))
    if arguments.out:
        arguments.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
