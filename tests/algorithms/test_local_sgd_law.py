"""The fit of the benchmark of local SGD's scaling law, on the worked numbers of communication.md §1."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SIZES = [10**7, 10**8, 10**9]
LOSSES = [3.067588, 2.610941, 2.222271]  # (9e13 / N)^0.07


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("local_sgd_law", FOLDER / "local_sgd_law.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_fit_returns_what_made_its_points(script):
    """0.07 and 9e13; of the latter's logarithm, 32, the seven digits of the losses leave 1e-4."""
    assert [(9e13 / n) ** 0.07 for n in SIZES] == pytest.approx(LOSSES, abs=5e-7)
    alpha, height = script.fit(SIZES, LOSSES)
    assert alpha == pytest.approx(0.07, abs=1e-6)
    assert math.exp(height / alpha) == pytest.approx(9e13, rel=1e-3)


def test_the_fit_is_least_squares(script):
    """Of points that lie on no line: the normal equations in plain numbers."""
    losses = [3.2, 2.5, 2.3]
    x, y = [math.log(n) for n in SIZES], [math.log(v) for v in losses]
    middle, level = sum(x) / 3, sum(y) / 3
    slope = sum((a - middle) * (b - level) for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)
    assert script.fit(SIZES, losses) == pytest.approx((-slope, level - slope * middle))
