"""A gradient in one byte: the slope along a direction that everybody makes from a seed.

Notation: client k, sample s of version t has direction z; L_k is its loss on a batch of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from partwise.algorithms.replica import Replica, advanced, asked, caught_up, check_versions, log_of
from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm, ClientState, ServerState, Site, Task
from partwise.core.codec import register
from partwise.core.errors import CompositionError
from partwise.core.index import Index, Rows, Whole, shapes_of
from partwise.core.mean import Mean
from partwise.core.model import Params, Values
from partwise.core.plan import LocalPlan, ModelLoss, Trained
from partwise.core.population import Census
from partwise.core.rng import derive, generator
from partwise.core.schedule import ReplyInfo
from partwise.core.seeded import Seeded
from partwise.core.update import Update
from partwise.local import SGD

__all__ = ["OneByte", "Slopes", "from_bytes", "to_bytes"]

_STEPS = 8  # of a byte in a factor of e


def to_bytes(slopes: Tensor) -> Tensor:
    """One byte each: 0 for 0; otherwise the sign in the highest bit, and 64 + round(8 ln |g|), within 1..127.

    From 3.801e-4 to 2630.7 the error is below 6.45 %; what is smaller or larger becomes one of these two.

    Example:
        >>> to_bytes(torch.tensor([1.0, -0.37, 250.0, 3e-4, 0.0])).tolist()
        [64, 184, 108, 1, 0]
    """
    slopes = slopes.double()
    power = (_STEPS * slopes.abs().clamp(min=1e-300).log()).round_().clamp_(-63, 63)
    return torch.where(slopes == 0, 0.0, power + 64 + 128.0 * (slopes < 0)).to(torch.uint8)


def from_bytes(codes: Tensor) -> Tensor:
    """Undo `to_bytes`, float32.

    Example:
        >>> from_bytes(torch.tensor([206], dtype=torch.uint8))
        tensor([-5.7546])
    """
    power = (codes & 127).double()
    size = torch.where(power == 0, 0.0, ((power - 64) / _STEPS).exp())
    return torch.where(codes >= 128, -size, size).float()


@register
@dataclass(frozen=True, eq=False)
class Slopes:
    """Slopes, one byte each.

    Args:
        codes: uint8, of any shape.
    """

    codes: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.uint8:
            raise ValueError(f"Slopes(): needs bytes, got {self.codes.dtype}. Send what `to_bytes` made.")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.codes.shape)

    def unpack(self) -> Tensor:
        """The slopes, float32."""
        return from_bytes(self.codes)


@dataclass(frozen=True)
class OneByte(Algorithm):
    """g = (L_k(w + eps z) - L_k(w - eps z)) / (2 eps) is all that a client sends; w <- w - lr / √n sum of g z.

    n is the number of samples in a version. Each client measures along directions of its own, new in every version,
    which all the others make from its number; all slopes come back to everybody. A client keeps its model and makes
    the steps that it missed, half of `keep` versions back, as long as their slopes are fewer bytes than the model; no
    gradient is taken. With one client and one sample it is MeZO. It is for models without
    running statistics, which would be moved like weights; on the clock, measuring takes no time.

    Args:
        num_clients: of the population; a client's number is below it.
        samples: directions of a client in a version, >= 1.
        lr: learning rate, > 0.
        eps: length of the two steps, > 0.
        batch_size: examples that a slope is measured on; 0 for all.
        normaliser: `sqrt`, as in the released code; `mean` divides by n instead of its root.
        is_coded: one byte for a slope; otherwise it is sent as float32.
        keep: versions whose slopes the server keeps, >= 2.
        seed: of the directions.

    Source: Zelikman et al., "Just one byte (per gradient): a note on low-bandwidth decentralized language model
        finetuning using shared randomness", 2023, arXiv:2306.10015; Malladi et al., "Fine-tuning language models with
        just forward passes", NeurIPS 2023, arXiv:2305.17333.
    Differs: a server hands the slopes on; a byte, where the released code sends text; a client that answers too late
        is left out, instead of going back to a copy from before.
    """

    num_clients: int
    samples: int = 1
    lr: float = 0.01
    eps: float = 1e-3
    batch_size: int = 32
    normaliser: Literal["sqrt", "mean"] = "sqrt"
    is_coded: bool = True
    keep: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_clients, self.samples) < 1 or self.keep < 2 or not (self.lr > 0 and self.eps > 0):
            raise ValueError(
                f"OneByte(num_clients={self.num_clients}, samples={self.samples}, lr={self.lr}, eps={self.eps}, "
                f"keep={self.keep}): needs clients, samples, a rate and an eps above 0, and two versions to keep, got "
                "others. eps=1e-3 is usual."
            )
        if not self.batch_size >= 0:
            raise ValueError(
                f"OneByte(batch_size={self.batch_size}): must be at least 0, got {self.batch_size}. 0 takes all."
            )
        if self.normaliser not in ("sqrt", "mean"):
            raise ValueError(f"OneByte(normaliser={self.normaliser!r}): must be 'sqrt' or 'mean'. 'sqrt' is released.")

    @property
    def needs_fresh(self) -> bool:
        return True

    @property
    def mirrors(self) -> bool:
        return True

    def _fields(self) -> Values:
        kind = torch.uint8 if self.is_coded else torch.float32
        return {"slopes": torch.zeros(self.num_clients, self.samples, dtype=kind), "count": torch.zeros(1)}

    def _moved_(self, params: Values, version: int, client: int, by: Tensor) -> None:
        """Along all directions of a client, each times its number: (samples,)."""
        seed = derive(self.seed, "one byte", version, client)
        directions = Seeded(Whole(shapes_of(params)), seed, dict.fromkeys(params, self.samples))
        directions.scatter_add_(params, dict.fromkeys(params, by))

    def _step_(self, model: Values, version: int, fields: Values) -> None:
        """From the model of `version` to the next, in the order of clients and samples."""
        slopes = from_bytes(fields["slopes"]) if self.is_coded else fields["slopes"]
        count = max(1.0, float(fields["count"]) * self.samples)
        rate = self.lr / (math.sqrt(count) if self.normaliser == "sqrt" else count)
        for client in slopes.any(1).nonzero().reshape(-1).tolist():
            self._moved_(model, version, client, -rate * slopes[client].double())

    def init(self, params: Params, census: Census) -> ServerState:
        model = {name: t.clone() for name, t in params.items()}
        numbers = {"slopes": torch.zeros(self.num_clients, self.samples)}
        return {"model": model, "numbers": numbers, "log": log_of(self._fields(), self.keep)}

    def client_init(self, site: Site) -> ClientState:
        if site.client >= self.num_clients:
            raise CompositionError(
                f"OneByte(num_clients={self.num_clients}): must be at least the number of clients, got client "
                f"{site.client}. Set num_clients={site.client + 1} or more."
            )
        return Replica()

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index]:
        return asked(own, task, self._fields(), self.keep, site)

    def receive(
        self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, Values]:
        model, version = caught_up(held, own, task, site, keep=self.keep, step_=self._step_)
        return {"model": model, "at": {"version": torch.tensor([version])}}

    def weight(self, site: Site) -> float:
        return 1.0

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        return LocalPlan(ModelLoss(site.model), SGD(self.lr), steps=0, epochs=0)

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        version, rng = int(held["at"]["version"]), generator(site.derive("slopes", task), "batches")
        slopes = torch.tensor([[self._slope(held["model"], version, s, site, rng) for s in range(self.samples)]])
        if not bool(slopes.isfinite().all()):
            raise ValueError(f"client {site.client}: slopes must be finite, got others. Lower the learning rate.")
        rows = Rows({"slopes": (self.num_clients, self.samples)}, {"slopes": torch.tensor([site.client])})
        value = Slopes(to_bytes(slopes)) if self.is_coded else slopes.float()
        return {"numbers": Update(rows, {"slopes": value})}, Replica(version, dict(held["model"]))

    def _slope(self, model: Values, version: int, sample: int, site: Site, rng: torch.Generator) -> float:
        data = site.localized(site.whole())
        size = min(self.batch_size or len(data), len(data))
        batch = data.batch(torch.randperm(len(data), generator=rng)[:size])
        step, by = {name: torch.zeros_like(t) for name, t in model.items()}, torch.zeros(self.samples)
        by[sample] = self.eps
        self._moved_(step, version, site.client, by)
        losses = []
        for sign in (1, -1):
            moved = {name: t.add(step[name], alpha=sign) for name, t in model.items()}
            with torch.no_grad():
                losses.append(float(site.model.losses(moved, site.model.spared(batch), training=False).double().mean()))
        return (losses[0] - losses[1]) / (2 * self.eps)

    def aggregators(self) -> Mapping[str, Aggregator]:
        return {"numbers": Mean("holders")}

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        version, total = check_versions(self, state, replies), totals["numbers"]
        found = {"slopes": torch.zeros(self.num_clients, self.samples)}
        total.index.scatter_add_(found, total.values())
        slopes = to_bytes(found["slopes"]) if self.is_coded else found["slopes"]
        fields = {"slopes": slopes, "count": torch.tensor([float(len(replies))])}
        self._step_(state["model"], version, fields)
        return {**state, "log": advanced(state["log"], fields)}
