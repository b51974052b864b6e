"""Every algorithm on every workload at a small size, and the jobs that a run of them gives to its executor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from partwise.algorithms import (
    CO2,
    CSER,
    LANS,
    MCPSGD,
    MMPSGD,
    AdaAlter,
    AdaptiveClip,
    CrossTier,
    Deniable,
    Downlink,
    FedAMD,
    FedAvg,
    FederatedDropout,
    FedHyper,
    FedLaAvg,
    FedProx,
    FedRank,
    FedSubAvg,
    Ferret,
    FjORD,
    HeteroFL,
    LocalOnly,
    Mirrored,
    Mixing,
    Scaffold,
    SignMomentum,
    Utility,
)
from partwise.channels import Plain as InTheClear
from partwise.core.algorithm import Algorithm
from partwise.core.model import MarginCrossEntropy, Model
from partwise.core.plan import Executor, Job, opened
from partwise.core.population import Examples, Population, Profile
from partwise.core.workload import Workload, WorkloadSource
from partwise.local import SGD, AdamW, LocalTraining
from partwise.populations import IID
from partwise.programs.star import Star
from partwise.runtimes import Simulate
from partwise.runtimes.executors import Auto, OnDevice, Plain, Pool, Stacked
from partwise.schedulers import Synchronous
from partwise.transforms import Sign, TopK
from partwise.workloads import (
    CIFAR10,
    MNIST,
    ClickLog,
    FashionMNIST,
    LeafSynthetic,
    Shakespeare,
    ShakespeareGPT,
    SparseLogistic,
    StdlibCode,
    WithLoss,
)
from partwise.workloads.models import ImageCNN, ImageMLP
from toy_star import Log

# What an executor's results may differ by from those of Plain, as it says of itself.
EXACT: Mapping[torch.dtype, float] = {}
NEAR = {torch.float64: 1e-9, torch.float32: 1e-4}
# Adam divides by the root of a square: where a gradient is nothing but rounding, as that of the attention's last bias,
# which softmax ignores, 1e-16 becomes 1e-8 of a step.
NEAR_OF_ADAM = {torch.float64: 1e-7}

CANDIDATES: Mapping[str, Executor] = {"Plain": Plain(), "Pool": Pool(workers=2), "Stacked": Stacked()}
EXECUTORS: Mapping[str, Executor] = {
    **CANDIDATES,
    "OnDevice": OnDevice("cpu", Plain()),
    "OnDevice of Stacked": OnDevice("cpu"),
    **{f"Auto of {name}": Auto([candidate], trial_seconds=0.01) for name, candidate in CANDIDATES.items()},
}


# Algorithms, made for a model: one without named widths is trained whole by those that thin.

LOCAL = LocalTraining(SGD(0.1), batch_size=24)


def _last(model: Model) -> tuple[str, ...]:
    """A parameter to keep at home, where there is another one to share."""
    names = list(model.init(0))
    return (names[-1],) if len(names) > 1 else ()


ALGORITHMS: Mapping[str, Callable[[Model], Algorithm]] = {
    "AdaAlter": lambda model: AdaAlter(LOCAL),
    "CO2": lambda model: CO2(FedAvg(LOCAL), 0.1),
    "CSER": lambda model: CSER(TopK(ratio=0.2), every=2, local=LOCAL),
    "Downlink": lambda model: Downlink(FedAvg(LOCAL), Sign()),
    "Ferret": lambda model: Ferret(16, 0.1, LOCAL),
    "Mirrored": lambda model: Mirrored(LANS(FedAvg(LOCAL)), Sign()),
    "LANS": lambda model: LANS(FedAvg(LOCAL)),
    "SignMomentum, rows": lambda model: SignMomentum(FedSubAvg("count", LOCAL), 0.1),
    "FedAMD": lambda model: FedAMD(LOCAL, anchor_prob=0.0),  # anchors in the first round, miners in the second
    "FedAMD, rows": lambda model: FedAMD(LOCAL, anchor_prob=0.0, submodel=True),
    "FedAvg": lambda model: FedAvg(LOCAL),
    "FedLaAvg": lambda model: FedLaAvg(LOCAL, "server"),
    "FedLaAvg, rows": lambda model: FedLaAvg(LOCAL, submodel=True),
    "FedHyper": lambda model: FedHyper(FedProx(0.5, LOCAL), client_rate=True, rate=0.1),
    "FedHyper of the server, rows": lambda model: FedHyper(FedSubAvg("count", LOCAL), rate=0.1),
    "FedProx": lambda model: FedProx(0.5, LOCAL),
    "FedRank": lambda model: FedRank(LOCAL),
    "FedSubAvg": lambda model: FedSubAvg("count", LOCAL),
    "FederatedDropout": lambda model: FederatedDropout(0.5 if model.widths else 1.0, LOCAL),
    "FjORD": lambda model: FjORD((0.25, 0.5, 1.0) if model.widths else (1.0,), LOCAL),
    "HeteroFL": lambda model: HeteroFL(LOCAL),
    "LocalOnly": lambda model: LocalOnly(FedAvg(LOCAL), names=_last(model)),
    "LocalOnly, rows": lambda model: LocalOnly(FedSubAvg("heat", LOCAL), names=_last(model)),
    "MCPSGD": lambda model: MCPSGD(1, LOCAL),
    "MMPSGD": lambda model: MMPSGD(1, LOCAL),
    "CrossTier": lambda model: CrossTier(FedProx(0.5, LOCAL), tiers=1),
    "Deniable, rows": lambda model: Deniable(FedSubAvg("count", LOCAL), randomness="simulated"),
    "AdaptiveClip": lambda model: AdaptiveClip(FedSubAvg("count", LOCAL), 0.1),
    "Mixing": lambda model: Mixing(FedSubAvg("count", LOCAL)),
    "Utility": lambda model: Utility(FedSubAvg("count", LOCAL)),
    "Scaffold": lambda model: Scaffold(LOCAL),
    "Scaffold, rows": lambda model: Scaffold(LOCAL, "I", submodel=True),
}
RULES: Mapping[str, LocalTraining] = {
    "SGD, momentum": LocalTraining(SGD(0.1, momentum=0.9), batch_size=16),
    "SGD, decay": LocalTraining(SGD(0.1, weight_decay=0.1), batch_size=0, steps=3, lr_decay=0.9),
    "SGD, both, clipped": LocalTraining(SGD(0.1, momentum=0.8, weight_decay=0.1), batch_size=15, max_norm=0.05),
    "SGD, clipped with decay": LocalTraining(SGD(0.1, weight_decay=0.1), batch_size=15, max_norm=0.05, clip_decay=True),
    "AdamW": LocalTraining(AdamW(0.01, weight_decay=0.1), batch_size=16),
    "AdamW, clipped": LocalTraining(AdamW(0.01, weight_decay=0.0), batch_size=64, epochs=3, max_norm=0.05),
}


# Workloads


def _images(side: int, channels: int) -> Any:
    return np.random.default_rng(side).integers(0, 256, (42, channels, side, side), np.uint8)


def _labels() -> Any:
    return (np.arange(42) * 7 % 10).astype(np.uint8)


def _npz(folder: Path, name: str) -> None:
    pixels, labels = _images(28, 1)[:, 0], _labels()
    np.savez(folder / f"{name}.npz", x_train=pixels, y_train=labels, x_test=pixels[:10], y_test=labels[:10])


def _binaries(folder: Path) -> None:
    records = np.concatenate([_labels()[:, None], _images(32, 3).reshape(42, -1)], 1)
    for i, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        (folder / name).write_bytes(records[7 * i : 7 * i + 7].tobytes())


def _play(folder: Path) -> None:
    says = {"ANN": "the rain it raineth every day ", "BOB": "hey ho the wind and the rain ", "EVE": "every day, ho! "}
    speeches = [f"{name}\t{text * (3 + i)}" for i, (name, text) in enumerate(says.items())]
    (folder / "play.txt").write_text("\n".join(speeches) + "\n")


def _library(folder: Path) -> None:
    for i, body in enumerate(("f(a, b, c)\n", "x = y + z * x\n", "for a in z: b += f(x, y)\n")):
        (folder / f"module{i}.py").write_text(body * (9 + 2 * i))


IMAGES = {"partition": IID(3), "size": "mlp"}
WORKLOADS: Mapping[str, Callable[[Path], WorkloadSource]] = {
    "CIFAR10": lambda folder: CIFAR10(folder, **{**IMAGES, "size": "small"}),
    "ClickLog": lambda folder: ClickLog(5, 40, vocabulary=15, exposures=60, window=3, embedding=4, hidden=4),
    "FashionMNIST": lambda folder: FashionMNIST(folder, **IMAGES),
    "LeafSynthetic": lambda folder: LeafSynthetic(num_clients=5, num_features=7, classes=4, max_examples=55),
    "MNIST": lambda folder: MNIST(folder, **{**IMAGES, "size": "small"}),
    "Shakespeare": lambda folder: Shakespeare(
        folder, "word", window=3, stride=2, min_chars=50, embedding=4, hidden=5, test_share=0
    ),
    "Shakespeare, characters": lambda folder: Shakespeare(
        folder, window=5, stride=6, min_chars=50, embedding=4, hidden=5, layers=2, test_share=0
    ),
    "ShakespeareGPT": lambda folder: ShakespeareGPT(
        folder, context=6, width=8, heads=2, layers=1, min_chars=50, test_share=0
    ),
    "SparseLogistic": lambda folder: SparseLogistic(5, 60, 12, 30, 3),
    "StdlibCode": lambda folder: StdlibCode(3, 4, 4, min_names=20, cache=False, folder=folder),
    "WithLoss": lambda folder: WithLoss(
        LeafSynthetic(num_clients=5, num_features=7, classes=4, max_examples=55), MarginCrossEntropy()
    ),
}
HAVE_TABLES = {"ClickLog", "Shakespeare", "SparseLogistic", "StdlibCode"}
_FILES: Mapping[str, Callable[[Path], None]] = {
    "CIFAR10": _binaries,
    "FashionMNIST": lambda folder: _npz(folder, "fashion_mnist"),
    "MNIST": lambda folder: _npz(folder, "mnist"),
    "Shakespeare": _play,
    "Shakespeare, characters": _play,
    "ShakespeareGPT": _play,
    "StdlibCode": _library,
}
# The same networks with fewer units.
_SMALLER: Mapping[str, Callable[[], nn.Module]] = {
    "CIFAR10": lambda: ImageCNN(3, 32, 2, 4, 8),
    "FashionMNIST": lambda: ImageMLP(784, 8),
    "MNIST": lambda: ImageCNN(1, 28, 2, 4, 8),
}
# Layers that can be thinned, for models whose workloads name none.
_ATTENTION = {
    f"{part}.{name}": axes
    for part in ("attend", "score")
    for name, axes in (("0.weight", (part, None)), ("0.bias", (part,)), ("2.weight", (None, part)))
}
_EMBEDDING = {"embed.weight": (None, "row"), "layers.0.inputs.weight": (None, "row")}
_WIDTHS: Mapping[str, Mapping[str, tuple[str | None, ...]]] = {
    "ClickLog": _ATTENTION,
    "StdlibCode": _ATTENTION,
    "Shakespeare": _EMBEDDING,
    "Shakespeare, characters": _EMBEDDING,
}


@dataclass(frozen=True)
class _People:
    """The clients of a workload with floats of one type, and profiles of three widths."""

    inner: Population
    dtype: torch.dtype
    has_widths: bool

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def data(self, client: int) -> Examples:
        columns = self.inner.data(client).columns()
        return Examples({n: c.to(self.dtype) if c.is_floating_point() else c for n, c in columns.items()})

    def profile(self, client: int, now: float = 0.0) -> Profile:
        return Profile(width=(1.0, 0.5, 0.25)[client % 3] if self.has_widths else 1.0)


@cache
def workload(name: str, dtype: torch.dtype = torch.float64) -> Workload:
    with TemporaryDirectory() as folder:
        if name in _FILES:
            _FILES[name](Path(folder))
        built = WORKLOADS[name](Path(folder)).build(2)
    model = replace(built.model, widths=_WIDTHS.get(name, built.model.widths))
    model = replace(model, module=_SMALLER.get(name, model.module))
    return typed(Workload(model, built.population, built.metrics), dtype)


def typed(of: Workload, dtype: torch.dtype) -> Workload:
    """The workload with parameters and data of one type, and clients of three widths."""
    model = replace(of.model, module=lambda: of.model.module().to(dtype))
    return Workload(model, _People(of.population, dtype, bool(model.widths)), of.metrics)


# Jobs


@dataclass
class _Recording:
    """The plain executor, which keeps the jobs."""

    jobs: list[Job] = field(default_factory=list)

    def run(self, jobs: Sequence[Job]) -> Any:
        self.jobs += jobs
        return Plain().run(jobs)


def jobs_of(of: Workload, algorithm: Algorithm) -> tuple[list[Job], list[Job]]:
    """The jobs of three clients in a first round, and in a second one with what they kept of the first."""
    recording, log = _Recording(), Log()
    # MC-PSGD trains at every other version.
    scheduler = Synchronous(cohort=3, rounds=3 if isinstance(algorithm, MCPSGD) else 2)
    people = of.population
    star = Star(algorithm, scheduler, of.model, people, InTheClear(), seed=5)
    Simulate(recording).run(star.programs(), people, log)
    assert log.of("lost") == []
    assert len(recording.jobs) == 6
    return recording.jobs[:3], recording.jobs[3:]


@lru_cache(maxsize=len(ALGORITHMS) + len(RULES))
def rounds(name: str, algorithm: str, dtype: torch.dtype = torch.float64) -> tuple[list[Job], list[Job]]:
    """`jobs_of` a workload and an algorithm, or FedAvg with one of the rules, by name."""
    of = workload(name, dtype)
    return jobs_of(of, ALGORITHMS[algorithm](of.model) if algorithm in ALGORITHMS else FedAvg(RULES[algorithm]))


@contextmanager
def all_open() -> Iterator[dict[str, Executor]]:
    """The executors by name, opened as for one run."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(opened(executor, {})) for name, executor in EXECUTORS.items()}
