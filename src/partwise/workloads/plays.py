"""A language task on Shakespeare's plays: a small GPT, pretrained on half of them and tuned across the other half.

Shapes: n examples, t symbols of context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from partwise.core.errors import DataError
from partwise.core.metrics import Loss, Perplexity
from partwise.core.model import CrossEntropy, Model
from partwise.core.workload import Workload
from partwise.populations.arrays import ArrayPopulation
from partwise.populations.availability import Always, Availability
from partwise.populations.profiles import Constant, Profiles
from partwise.populations.reliability import Reliability, Steady
from partwise.workloads.gpt import GPT
from partwise.workloads.shakespeare import characters, read_roles

__all__ = ["Half", "ShakespeareGPT", "save_weights"]

Half = Literal["all", "pretrain", "tune"]


@dataclass(frozen=True)
class ShakespeareGPT:
    """Next characters of Shakespeare's plays by a small GPT; clients are roles, plays or groups of plays.

    An example is a text of `context` characters and the characters that follow each of them. A client's last
    `test_share` of text is its test set.

    Args:
        folder: holds the plays, as for `Shakespeare`.
        half: `pretrain` takes every second play of the folder, `tune` the others, whichever roles count.
        clients: what a client is: a `role` of a play, or a `play`.
        clusters: so many clients instead, at most as there are plays, each a group of plays that follow one another; 0
            for none.
        width: of the GPT, as are the next three.
        heads: a divisor of the width.
        layers: blocks.
        context: t.
        min_chars: characters that a role must have to count.
        max_clients: the largest roles only, of which clients are made. 0: all.
        test_share: in [0, 1).
        weights: a file of `save_weights` to begin with, such as those of a run on the other half. None begins by the
            seed.
        profiles: how fast the clients are.
        availability: when they could answer.
        reliability: what becomes of their tasks.
    """

    folder: Path | str
    half: Half = "all"
    clients: Literal["role", "play"] = "role"
    clusters: int = 0
    width: int = 64
    heads: int = 4
    layers: int = 4
    context: int = 64
    min_chars: int = 1000
    max_clients: int = 0
    test_share: float = 0.1
    weights: Path | str | None = None
    profiles: Profiles = field(default_factory=Constant)
    availability: Availability = field(default_factory=Always)
    reliability: Reliability = field(default_factory=Steady)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        for name in ("width", "heads", "layers", "context", "min_chars"):
            if getattr(self, name) < 1:
                raise ValueError(f"ShakespeareGPT({name}={getattr(self, name)}): must be at least 1. Raise it.")
        if self.width % self.heads:
            raise ValueError(
                f"ShakespeareGPT(width={self.width}, heads={self.heads}): the width must be a multiple of the heads, "
                f"got a rest of {self.width % self.heads}. Change one of them."
            )
        if self.half not in get_args(Half) or self.clients not in ("role", "play"):
            raise ValueError(
                f"ShakespeareGPT(half={self.half!r}, clients={self.clients!r}): must be of {get_args(Half)} and of "
                "('role', 'play'), got others. Choose."
            )
        if min(self.clusters, self.max_clients) < 0 or not 0 <= self.test_share < 1:
            raise ValueError(
                f"ShakespeareGPT(clusters={self.clusters}, max_clients={self.max_clients}, "
                f"test_share={self.test_share}): needs counts from 0 on and a share in [0, 1), got others. Use 0 for "
                "none."
            )

    def build(self, seed: int) -> Workload:
        texts = self._texts()
        sequences, symbols = characters(list(texts.values()))
        train, test, names = [], [], []
        for name, sequence in zip(texts, sequences, strict=True):
            cut = int(len(sequence) * (1 - self.test_share))
            early = self._examples(sequence[:cut])
            if len(early):
                train.append(early)
                test.append(self._examples(sequence[cut:]))
                names.append(name)
        if not names:
            raise DataError(
                f"ShakespeareGPT(context={self.context}): needs a client with more text than a context, got none. "
                "Shorten the context."
            )
        population = ArrayPopulation(
            *_columns(train),
            *_columns(test),
            names=names,
            profiles=self.profiles,
            availability=self.availability,
            reliability=self.reliability,
        )
        loss = CrossEntropy()
        make = partial(GPT, symbols, self.width, self.heads, self.layers, self.context)
        model = Model(make if self.weights is None else _loaded(make(), Path(self.weights)), loss, inputs=("text",))
        return Workload(model, population, (Loss(loss), Perplexity(loss)))

    def _texts(self) -> dict[str, str]:
        """Client -> its text."""
        roles = read_roles("ShakespeareGPT", Path(self.folder), self.min_chars, self.max_clients)
        kept = sorted({name.partition("/")[0] for name, _ in roles})
        if self.half != "all":
            # Of all plays, whichever roles are kept: a play that is in one half is in no other, whatever else is set.
            every = sorted({name.partition("/")[0] for name, _ in read_roles("ShakespeareGPT", Path(self.folder), 1)})
            half = set(every[self.half == "tune" :: 2])
            kept = [play for play in kept if play in half]
        if self.clusters > len(kept):
            raise DataError(
                f"ShakespeareGPT(clusters={self.clusters}): needs a play for each cluster, got {len(kept)} plays. "
                "Lower clusters."
            )
        texts: dict[str, list[str]] = {}
        for name, text in roles:
            play = name.partition("/")[0]
            if play in kept:
                group = f"cluster {kept.index(play) * self.clusters // len(kept)}" if self.clusters else play
                texts.setdefault(name if self.clients == "role" and not self.clusters else group, []).append(text)
        return {name: "\n".join(parts) for name, parts in texts.items()}

    def _examples(self, sequence: np.ndarray) -> np.ndarray:
        """Texts with the character after them: (n, t + 1)."""
        count = max(0, (len(sequence) - 1) // self.context)
        starts = np.arange(count)[:, None] * self.context
        windows: np.ndarray = sequence[starts + np.arange(self.context + 1)].astype(np.uint8)
        return windows


def _columns(parts: list[np.ndarray]) -> tuple[dict[str, Tensor], Tensor]:
    windows = torch.from_numpy(np.concatenate(parts))
    offsets = torch.tensor([0, *map(len, parts)]).cumsum(0)
    return {"text": windows[:, :-1].contiguous(), "y": windows[:, 1:].long()}, offsets


def save_weights(params: Mapping[str, Tensor], path: Path | str) -> None:
    """Write parameters, such as a result's, for a workload to begin with: a safetensors file."""
    save_file({name: t.contiguous() for name, t in params.items()}, path)


def _loaded(module: nn.Module, path: Path) -> nn.Module:
    if not path.is_file():
        raise DataError(f"ShakespeareGPT(weights={str(path)!r}): must be a file of save_weights, got none. Make one.")
    found = load_file(path)
    expected = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    if {name: tuple(t.shape) for name, t in found.items()} != expected:
        raise DataError(
            f"ShakespeareGPT(weights={str(path)!r}): must be of the same width, layers and context, got others. "
            "Use the settings that it was made with."
        )
    module.load_state_dict(found)
    return module
