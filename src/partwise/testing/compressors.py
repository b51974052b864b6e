"""The contract of compressors: what they claim of their loss is so, and measured on hostile updates."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from partwise.core.codec import decode, encode
from partwise.core.compressor import Claims, Compressor, common
from partwise.core.index import Whole
from partwise.core.kinds import article
from partwise.core.rng import derive, generator
from partwise.core.update import Update
from partwise.testing.rules import expect, trying

__all__ = ["check_compressor"]

_DRAWS = 200
_EVEN = ("random", "a matrix")  # of many values none of which outweighs the others, so that some are met in a few draws
_SEEDS = 12  # of which two may draw alike, where there are few draws
_ERRORS = 5.0  # standard errors; of some thousand means, one is 4 away by chance


def check_compressor(part: Compressor, *, draws: int = _DRAWS) -> None:
    """Check that a compressor keeps what it claims; for the contract of transforms there is `check_transform`.

    Vectors and matrices, random, sparse, constant, with heavy tails, zero, of one element and of odd sizes, are
    compressed `draws` times where a claim is about a mean.

    Args:
        part: the compressor.
        draws: for each of the updates.

    Raises:
        AssertionError: a claim is not kept, or NaN is taken; the sentence says which.

    Example:
        >>> from partwise.transforms import TopK
        >>> check_compressor(TopK(ratio=0.3))
    """
    for name, values in _updates().items():
        claims = _claims(part, values.numel())
        if claims.omega is not None or claims.delta is not None:
            _loss(part, name, values, claims, draws)
        if claims.is_linear:
            _linear(part, name, values)
        _decoded(part, name, values)
    claims = _claims(part, 64)
    expect(
        claims.delta is None or 0 < claims.delta <= 1,
        part,
        "delta must lie in (0, 1]",
        got=claims.delta,
        remedy="Claim nothing",
    )
    if claims.is_common:
        _common(part)
    _refuses_nan(part)


def _claims(part: Compressor, size: int) -> Claims:
    """What it claims of updates of that size."""
    rule, remedy = "must claim what is in Claims: numbers, or None for what is not claimed", "Return Claims(...)"
    with trying(part, rule):
        found: object = part.claims(size)
    if isinstance(found, Claims) and all(isinstance(n, Real | None) for n in (found.omega, found.delta)):
        return found
    got = repr(found) if isinstance(found, Claims) else article(type(found).__name__)
    raise AssertionError(f"{part!r}: {rule}, got {got}. {remedy}.")


def _updates() -> dict[str, Tensor]:
    """Name -> values of an update."""
    rng = generator(17, "check compressor")
    normal = torch.randn(203, generator=rng, dtype=torch.float64)
    sparse = torch.where(torch.rand(203, generator=rng) < 0.05, normal, 0.0)
    heavy = normal.sign() * normal.abs().exp() ** 3
    found = {
        "random": normal,
        "sparse": sparse,
        "constant": torch.full((64,), -0.3, dtype=torch.float64),
        "heavy-tailed": heavy,
        "one large among small": torch.cat([torch.tensor([100.0], dtype=torch.float64), 0.01 * normal[:99]]),
        "one element": torch.tensor([-2.5], dtype=torch.float64),
        "zeros": torch.zeros(37, dtype=torch.float64),
        "a matrix": torch.randn(12, 17, generator=rng, dtype=torch.float64),
        "a matrix of rank one": torch.outer(normal[:12], normal[12:29]),
    }
    return {name: value.to(torch.float32) for name, value in found.items()}


def _sent(part: Compressor, values: Tensor, draw: int) -> Tensor:
    """What the other side decodes, dense, in float64."""
    update = Update(Whole({"w": tuple(values.shape)}), {"w": values})
    seeded = common(part, derive(draw, "check common"))
    sent, _ = seeded.apply(update, part.init({"w": values}), generator(draw, "check compressor"))
    full = {"w": torch.zeros(values.shape, dtype=torch.float64)}
    sent.index.scatter_add_(full, {name: value.double() for name, value in sent.values().items()})
    return full["w"]


def _loss(part: Compressor, name: str, values: Tensor, claims: Claims, draws: int) -> None:
    exact = values.double()
    each = torch.stack([_sent(part, values, draw) for draw in range(draws)])
    lost = ((each - exact) ** 2).reshape(draws, -1).sum(1)
    mean, error = float(lost.mean()), float(lost.std()) / math.sqrt(draws)
    norm2 = float((exact**2).sum())
    rounding = 1e-12 * norm2 + 1e-60
    if claims.delta is not None:
        expect(
            mean <= (1 - claims.delta) * norm2 + _ERRORS * error + rounding,
            part,
            f"must lose at most 1 - delta = {1 - claims.delta:.6g} of the squared length of an update that is {name}",
            got=f"{mean / norm2 if norm2 else mean:.6g}",
            remedy="Claim a smaller delta, or none",
        )
    if claims.omega is not None:
        expect(
            mean <= claims.omega * norm2 + _ERRORS * error + rounding,
            part,
            f"must err by at most omega = {claims.omega:.6g} times the squared length of an update that is {name}",
            got=f"{mean / norm2 if norm2 else mean:.6g}",
            remedy="Claim a larger omega, or none",
        )
        off = (each.mean(0) - exact).abs()
        allowed = _ERRORS * each.std(0) / math.sqrt(draws) + 1e-6 * exact.abs().max()
        # Of a value that comes once in a hundred draws, the deviation in those that were made says little.
        reach = (each - each.mean(0)).abs().amax(0)
        rare = torch.where(reach == 0, math.sqrt(claims.omega * norm2 / draws) * _ERRORS, 2 * _ERRORS * reach / draws)
        expect(
            bool((off <= allowed + rare).all()),
            part,
            f"must be right on average for an update that is {name}",
            got=f"a mean that is off by {float((off / allowed).max()) * _ERRORS:.1f} standard errors",
            remedy="Claim a delta instead of an omega",
        )
        if name in _EVEN and bool(each.any()):
            _whole(part, name, (each * exact).reshape(draws, -1).sum(1) / norm2)


def _whole(part: Compressor, name: str, shares: Tensor) -> None:
    """Of all values together, ⟨C(x), x⟩ / ‖x‖²: also of those that no draw changed, of which there is no deviation.

    Args:
        part: the compressor.
        name: of the update.
        shares: (draws,).
    """
    draws, mean = len(shares), float(shares.mean())
    allowed = _ERRORS * float(shares.std()) / math.sqrt(draws) + 1e-6
    rare = 2 * _ERRORS * float((shares - mean).abs().max()) / draws
    expect(
        abs(mean - 1) <= allowed + rare,
        part,
        f"must be right on average for an update that is {name}, all values together",
        got=f"{mean:.6g} of it",
        remedy="Claim a delta instead of an omega",
    )


def _linear(part: Compressor, name: str, values: Tensor) -> None:
    other = values.flip(0) * 0.75 + 0.5
    got, parts = _sent(part, values + other, 3), _sent(part, values, 3) + _sent(part, other, 3)
    expect(
        bool(torch.allclose(got, parts, rtol=1e-5, atol=1e-6 * float(values.abs().max() + 1))),
        part,
        f"must make of a sum the sum of what it makes of its terms, for an update that is {name}",
        got="something else",
        remedy="Claim is_linear=False",
    )


def _decoded(part: Compressor, name: str, values: Tensor) -> None:
    update = Update(Whole({"w": tuple(values.shape)}), {"w": values})
    with trying(part, f"must take an update that is {name}"):
        sent, _ = part.apply(update, part.init({"w": values}), generator(1, "check compressor"))
    back = decode(bytearray(encode(sent)))
    same = back.index.shapes.keys() == sent.index.shapes.keys() and all(
        torch.equal(back.values()[n], v) and torch.equal(back.index.coords(n), sent.index.coords(n))
        for n, v in sent.values().items()
    )
    expect(
        same,
        part,
        f"must decode to what was sent, for an update that is {name}",
        got="something else",
        remedy="Register a lossless form",
    )


def _common(part: Compressor) -> None:
    values = _updates()["random"]
    one, *others = (common(part, seed) for seed in range(1, _SEEDS + 1))
    update = Update(Whole({"w": tuple(values.shape)}), {"w": values})
    draws = [(one, 1), (one, 2), *((other, 1) for other in others)]
    sent = [p.apply(update, (), generator(c, "x"))[0].index.coords("w") for p, c in draws]
    expect(
        torch.equal(sent[0], sent[1]) and not all(torch.equal(sent[0], at) for at in sent[2:]),
        part,
        "must draw by the common seed alone",
        got="a draw that follows the client's own, or none",
        remedy="Draw from `seed`, which `common` sets",
    )


def _refuses_nan(part: Compressor) -> None:
    values = torch.full((3, 3), math.nan)
    values[0, 0] = 1.0
    update = Update(Whole({"w": (3, 3)}), {"w": values})
    try:
        part.apply(update, part.init({"w": values}), generator(1, "check compressor"))
    except ValueError:
        return
    expect(False, part, "must refuse NaN", got="an update", remedy="Raise ValueError")
