"""Every part passes its family's contract."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

from partwise.aggregators import Krum, Mean, Median
from partwise.algorithms import (
    CO2,
    CSER,
    LANS,
    AdaAlter,
    AdaptiveClip,
    Distillation,
    Downlink,
    FedAvg,
    FedHyper,
    FedProx,
    FedSubAvg,
    Ferret,
    HeteroFL,
    LocalOnly,
    Mirrored,
    OneByte,
    Scaffold,
    SignMomentum,
)
from partwise.algorithms.distillation import PublicExamples
from partwise.attacks import AdditiveNoise, Gambler, SignFlip
from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm
from partwise.core.attack import Attack
from partwise.core.index import Coords, Grid, Index, Joint
from partwise.core.model import like
from partwise.core.plan import LocalOptimizer
from partwise.core.schedule import Scheduler
from partwise.core.transform import Identity, Transform, chain
from partwise.local import SGD, HyperStep, LocalTraining
from partwise.observers import MUDHoG
from partwise.schedulers import ByLink, Overlapped, Synchronous
from partwise.testing import check, check_transform
from partwise.testing.examples import example_indices, example_model, example_params, example_probe, example_sites
from partwise.transforms import (
    Adam,
    Clip,
    Eden,
    ErrorFeedback,
    FedZip,
    Halved,
    HyperRate,
    LowRank,
    Menu,
    Quantize,
    RandomK,
    Scale,
    ServerSGD,
    Sign,
    Smooth,
    TopK,
    TreeNoise,
    Yogi,
)

FAMILIES = {
    "schedulers": Scheduler,
    "transforms": Transform,
    "aggregators": Aggregator,
    "local": LocalOptimizer,
    "algorithms": Algorithm,
    "attacks": Attack,
}
# What a part is made with where it has no defaults; further settings that deserve a run of their own.
NEEDED = {"Clip": {"max_norm": 1.5}, "ErrorFeedback": {"inner": TopK(ratio=0.3)}, "Krum": {"f": 4}}
NEEDED |= {"Scale": {"factor": -0.5}, "TopK": {"k": 5}, "LocalOnly": {"inner": FedAvg()}}
NEEDED |= {"Mixing": {"inner": FedSubAvg("count")}, "CrossTier": {"inner": FedProx(0.4)}}
NEEDED |= {"Deniable": {"inner": FedSubAvg("count"), "randomness": "simulated"}}
NEEDED |= {"FixedMean": {"cohort": 9.0}, "GaussianNoise": {"noise_multiplier": 0.7, "sensitivity": 0.3}}
NEEDED |= {"TreeNoise": {"noise_multiplier": 0.7, "sensitivity": 0.3}, "AdaptiveClip": {"inner": FedAvg()}}
NEEDED |= {"DiscreteNoise": {"sensitivity": 2.0, "granularity": 0.01, "variance": 3.0}}
NEEDED |= {"FromGrid": {"granularity": 0.01, "rotation_seed": 3}}
NEEDED |= {"Downlink": {"inner": FedAvg(), "compress": Sign()}}
NEEDED |= {"OneByte": {"num_clients": 9, "samples": 2}}
NEEDED |= {"CO2": {"inner": FedAvg(), "gamma": 0.1}, "SignMomentum": {"inner": FedAvg(), "gamma": 0.1}}
NEEDED |= {"Menu": {"options": (Identity(), Halved(), Sign())}}
NEEDED |= {"ByLink": {"inner": Synchronous(cohort=5, rounds=3), "sizes": (4000, 500), "steps": 3}}
NEEDED |= {"Distillation": {"public": PublicExamples(example_sites(example_model())[0].data, (7, 2))}}
NEEDED |= {"Mirrored": {"inner": LANS(FedAvg()), "compress": Sign()}}
NEEDED |= {"LANS": {"inner": FedAvg()}}
NEEDED |= {"RandomK": {"ratio": 0.4}, "Threshold": {"above": 0.3}}
NEEDED |= {"FedHyper": {"inner": FedAvg()}, "Utility": {"inner": FedAvg()}}
NEEDED |= {"Bulyan": {"f": 2}, "MeanAroundMedian": {"f": 3}, "Phocas": {"f": 3}, "SLSGD": {"trim_count": 2}}
NEEDED |= {"CentredClip": {"radius": 2.0}, "NearestNeighbours": {"f": 3}, "Zeno": {"f": 3, "probe": example_probe()}}
NEEDED |= {"Mixture": {"attacks": (SignFlip(), AdditiveNoise()), "clients": ((0,), (1,))}}
NEEDED |= {"Watch": {"detector": MUDHoG()}}
NEEDED |= {"ZenoPlusPlus": {"probe": example_probe()}, "DefenceAwareMerging": {"steps": 2, "probe": example_probe()}}
FURTHER = [
    Identity(),
    chain(Clip(2.0), ErrorFeedback(TopK(k=3, scope="layer"), when_absent="drop"), Quantize(bits=4, bucket=7)),
    TopK(ratio=1.0),
    TopK(ratio=0.4, sample=8),
    TopK(ratio=0.1, warmup=3),
    Quantize(bits=2, scale_by="max"),
    Quantize(bits=4, bucket=5, scale_by="max", rounding="nearest", smooth=2),
    Quantize(bits=8, bucket=7, scale_by="max", rounding="nearest"),
    RandomK(0.3, unbiased=True, block=4),
    RandomK(0.3, by_row=True),
    Sign(scope="layer"),
    Smooth(order=1),
    Sign(scaled=False),
    Eden(bits=2.5, unbiased=False, scope="layer"),
    Eden(bits=0.4),
    Eden(bits=3),
    LowRank(rank=1),
    FedZip(ratio=0.7, centres=6),
    ErrorFeedback(Sign(), when_absent="flush"),
    ErrorFeedback(RandomK(0.3)),
    ErrorFeedback(LowRank(1)),
    ErrorFeedback(Menu((Identity(), LowRank(1), TopK(ratio=0.3), RandomK(0.3)), at=1)),
    Menu((RandomK(0.5, unbiased=True), Quantize(bits=4, bucket=7)), at=1),
    ByLink(Overlapped(4), (900, 800), 2, overhead=1.0, patience=1),
    Downlink(FedSubAvg("count"), Sign()),
    Mirrored(LANS(FedAvg()), Sign()),
    ServerSGD(lr=0.7, nesterov=True),
    AdaAlter(submodel=True, placeholder=False),
    CSER(RandomK(0.5), RandomK(0.5), every=2, submodel=True),
    CSER(RandomK(0.5, block=2), TopK(ratio=0.5), every=2),
    SignMomentum(FedSubAvg("count"), 0.1),
    CO2(FedSubAvg("count"), 0.1, gap="constant"),
    CO2(FedSubAvg("count"), 0.1, delay=0),
    Distillation(temperature=3.0, rows=3, batch=2, **NEEDED["Distillation"]),
    Ferret(directions=30, scale="release", weights="uniform"),
    OneByte(num_clients=9, is_coded=False, normaliser="mean"),
    Downlink(Scaffold(), Quantize(scale_by="max", rounding="nearest"), keep=2),
    ServerSGD(lazy=False),
    Adam(bias_correction=True),
    Yogi(lazy=False),
    *(
        Mean(by, at_least=c)
        for by in ("holders", "cohort", "expected", "expected_holders", "ratio")
        for c in (0.0, 1.0)
    ),
    Gambler(probability=0.5, shards=2, shard=1),
    Krum(f=2, num_selected=5),
    SGD(momentum=0.9, weight_decay=0.1, cautious=True),
    HyperRate(gamma=1.5, rate=0.1, normalize=True),
    HyperStep(0.2, SGD(momentum=0.9, weight_decay=0.1), rate=0.1, normalize=True),
    FedHyper(FedSubAvg("heat"), client_rate=True, normalize=True),
    FedHyper(HeteroFL(), server_rate=False, client_rate=True, divide_by="steps"),
    FedHyper(LocalOnly(FedAvg(), names=("hidden.bias",)), client_rate=True),
    LocalOnly(FedHyper(FedSubAvg(), client_rate=True), names=("hidden.bias",)),
    FedHyper(Scaffold(option="I", submodel=True), client_rate=True),
    TreeNoise(0.7, 0.3, restart_every=2, efficient=False),
    AdaptiveClip(FedSubAvg("count"), 0.01),
    FedAvg(LocalTraining(SGD(weight_decay=0.1), max_norm=0.5, clip_decay=True)),
]


def parts() -> list[Any]:
    """Every part of the families, from their `__all__`."""
    found = []
    for family, protocol in FAMILIES.items():
        module = import_module(f"partwise.{family}")
        for name in module.__all__:
            cls = getattr(module, name)
            if isinstance(cls, type) and all(hasattr(cls, m) for m in METHODS[protocol]):
                found.append(cls(**NEEDED.get(name, {})))
    return found + FURTHER


METHODS = {
    Scheduler: ("init", "step", "state_types"),
    Transform: ("init", "apply"),
    Aggregator: ("init", "reduce", "needs"),
    LocalOptimizer: ("init", "step_"),
    Algorithm: ("select", "plan", "finish", "commit"),
    Attack: ("poison", "forge"),
}


@pytest.mark.parametrize("part", parts(), ids=repr)
def test_part_passes_its_contract(part):
    check(part)


@pytest.mark.parametrize("kind", example_indices(example_params()))
def test_index_passes_its_contract(kind):
    check(example_indices(example_params())[kind])


@pytest.mark.parametrize("part", [Identity(), *(p for p in parts() if isinstance(p, Transform))], ids=repr)
def test_client_transforms_need_no_storage(part):
    is_server_side = type(part).__module__ == "partwise.transforms.optimize"
    if is_server_side:
        with pytest.raises(AssertionError, match="without storage"):
            check_transform(part, on_client=True)
    else:
        check_transform(part, on_client=True)


def test_the_list_is_whole():
    names = {type(part).__name__ for part in parts()}
    assert names >= {
        "Adagrad",
        "Clip",
        "Quantize",
        "Krum",
        "Mean",
        "Median",
        "TrimmedMean",
        "SGD",
        "AdamW",
        "FedAvg",
        "Synchronous",
    }


def test_what_is_no_part_is_refused():
    with pytest.raises(TypeError, match=r"check\(Clip\): needs a part, got its class\. Make one: Clip\(…\)\."):
        check(Clip)
    with pytest.raises(
        TypeError, match=r"check\(3\): needs a transform, aggregator, .* got a int with the methods of none\."
    ):
        check(3)


def test_protocols_tell_families_apart():
    index = Joint((Coords({"a": (3,)}, {"a": torch.tensor([1])}), Grid({"b": (2,)}, {"b": (None,)})))
    for part, family in ((index, Index), (SGD(), LocalOptimizer), (Median(), Aggregator), (Scale(1.0), Transform)):
        others = {Index, LocalOptimizer, Aggregator, Transform, Algorithm} - {family}
        assert isinstance(part, family)
        assert not any(isinstance(part, other) for other in others)
    assert like(example_params())["E"].is_meta
