"""The reader's own Python standard library as a recommendation problem: one client per module.

Shapes: b examples in a batch, t history length, V names in the vocabulary.
"""

from __future__ import annotations

import contextlib
import hashlib
import keyword
import os
import sys
import sysconfig
import tokenize
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from partwise.core.errors import DataError
from partwise.core.metrics import AUC, Accuracy, Loss
from partwise.core.model import BinaryCrossEntropy, Model
from partwise.core.rng import numpy_generator
from partwise.core.workload import Workload
from partwise.populations.arrays import ArrayPopulation
from partwise.populations.availability import Always, Availability
from partwise.populations.profiles import Constant, Profiles
from partwise.populations.reliability import Reliability, Steady
from partwise.workloads.cache import cache_dir, whole_file
from partwise.workloads.download import digest_of
from partwise.workloads.models import AttentionRecommender

__all__ = ["StdlibCode"]

Ids = NDArray[np.int64]

# Tests, demonstrations, the editor and the 2-to-3 converter are programs beside the library, not modules of it.
SKIPPED = frozenset(
    ["__pycache__", "dist-packages", "idle_test", "idlelib", "lib2to3", "site-packages", "test", "tests", "turtledemo"]
)
_FORMAT = 1


class _Tokens(NamedTuple):
    """Identifiers of all modules in order; module m has ids[offsets[m]:offsets[m + 1]]."""

    modules: list[str]
    names: list[str]
    ids: Ids
    offsets: Ids


@dataclass(frozen=True)
class StdlibCode:
    """Is this name the next one? Code completion over the running interpreter's standard library.

    A client is a module with at least `min_names` identifiers: tokens of kind NAME that are no keywords, in
    order. Names seen fewer than `min_count` times in all clients' modules, test parts included, are left out
    of the sequences. The last `test_share` of a client's identifiers is its test set; histories never reach
    across that cut. Every position gives two examples: the true next name, and one drawn uniformly from the
    other names of the client (training: of its training part). Needs no download; the data differ between
    Python versions. No licence question arises, for the data stay where they are (Python itself is under
    the PSF licence).

    Args:
        window: t, names of history per example.
        embedding: width of a row of the table.
        hidden: units of the two hidden layers.
        min_names: identifiers a module must have to be a client.
        min_count: occurrences a name must have to get a row.
        max_rows: names a client trains on at most, its most frequent ones; the others are left out of its
            training part. Default: an uplink stays below 3 % of the whole model. 0: no limit.
        test_share: in [0, 1).
        cache: keep the identifiers in the user's cache folder.
        profiles: how fast the clients are.
        availability: when they could answer.
        reliability: what becomes of their tasks.
        folder: Python sources to read. Default: the running interpreter's standard library.
    """

    window: int = 8
    embedding: int = 16
    hidden: int = 8
    min_names: int = 200
    min_count: int = 3
    max_rows: int = 300
    test_share: float = 0.2
    cache: bool = True
    profiles: Profiles = field(default_factory=Constant)
    availability: Availability = field(default_factory=Always)
    reliability: Reliability = field(default_factory=Steady)
    folder: Path | str | None = None

    def __post_init__(self) -> None:
        if self.folder is not None:
            object.__setattr__(self, "folder", Path(self.folder))
        for name in ("window", "embedding", "hidden", "min_names", "min_count"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"StdlibCode({name}={getattr(self, name)}): {name} must be at least 1, got {getattr(self, name)}. "
                    f"Leave it out for the default."
                )
        if self.max_rows < 0 or self.max_rows == 1:
            raise ValueError(
                f"StdlibCode(max_rows={self.max_rows}): max_rows must be 0 or at least 2, got {self.max_rows}. "
                "Use 0 for no limit."
            )
        if not 0 <= self.test_share < 1:
            raise ValueError(
                f"StdlibCode(test_share={self.test_share}): test_share must be in [0, 1), got {self.test_share}. "
                "Use 0.2 for the last fifth."
            )

    def build(self, seed: int) -> Workload:
        sequences, modules, num_names = self._sequences()
        train, test, names = _Columns(self.window), _Columns(self.window), []
        for client, (module, (early, late)) in enumerate(zip(modules, sequences, strict=True)):
            own, everything = np.unique(early), np.unique(np.concatenate([early, late]))
            if len(early) <= self.window or len(own) < 2:
                continue
            train.add(early, own, numpy_generator(seed, "negatives", client, 0))
            test.add(late, everything, numpy_generator(seed, "negatives", client, 1))
            names.append(module)
        if not names:
            raise DataError(
                f"StdlibCode(min_names={self.min_names}): needs a module with that many names, got none in "
                f"{self._root()}. Lower min_names, or name another folder of Python sources."
            )
        columns, offsets = train.joined()
        test_columns, test_offsets = test.joined()
        population = ArrayPopulation(
            columns,
            offsets,
            test_columns,
            test_offsets,
            names=names,
            profiles=self.profiles,
            availability=self.availability,
            reliability=self.reliability,
        )
        loss = BinaryCrossEntropy()
        model = Model(
            partial(AttentionRecommender, num_names, self.embedding, self.hidden),
            loss,
            inputs=("history", "candidate"),
            tables={"items.weight": ("history", "candidate")},
        )
        return Workload(model, population, (AUC(), Loss(loss), Accuracy()))

    def vocabulary(self) -> list[str]:
        """The name of every row of the table, the most frequent first."""
        tokens = self._tokens()
        rows = self._rows(tokens)
        order = np.argsort(rows)[np.count_nonzero(rows < 0) :]
        return [tokens.names[i] for i in order]

    def _root(self) -> Path:
        return Path(self.folder or sysconfig.get_path("stdlib"))

    def _rows(self, tokens: _Tokens) -> Ids:
        """Row of every name, by falling count and then by the alphabet; -1: none."""
        kept = np.repeat(np.diff(tokens.offsets) >= self.min_names, np.diff(tokens.offsets))
        counts = np.bincount(tokens.ids[kept], minlength=len(tokens.names))
        order = np.lexsort((np.argsort(np.argsort(np.array(tokens.names))), -counts))
        rows = np.full(len(counts), -1)
        rows[order] = np.arange(len(counts))
        return np.where(counts >= self.min_count, rows, -1)

    def _sequences(self) -> tuple[list[tuple[Ids, Ids]], list[str], int]:
        tokens = self._tokens()
        rows = self._rows(tokens)
        sequences, modules = [], []
        for module, start, stop in zip(tokens.modules, tokens.offsets[:-1], tokens.offsets[1:], strict=True):
            if stop - start < self.min_names:
                continue
            cut = start + int((stop - start) * (1 - self.test_share))
            early, late = rows[tokens.ids[start:cut]], rows[tokens.ids[cut:stop]]
            sequences.append((_frequent(early[early >= 0], self.max_rows), late[late >= 0]))
            modules.append(module)
        return sequences, modules, int(rows.max(initial=-1)) + 1

    def _tokens(self) -> _Tokens:
        root = self._root()
        files = sorted(_sources(root))
        if not self.cache:
            return _tokenized(root, files)
        name = f"stdlib_code-{_digest(root, files)}.npz"
        # Whatever is wrong with the cache, the sources are still there: read them again.
        with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return _load(cache_dir() / name)
        tokens = _tokenized(root, files)
        with contextlib.suppress(OSError, DataError):
            _save(cache_dir() / name, tokens)
        return tokens


def _frequent(sequence: Ids, limit: int) -> Ids:
    """The sequence without its rarest names, so that at most `limit` (0: any number) remain."""
    if not limit:
        return sequence
    names, counts = np.unique(sequence, return_counts=True)
    kept = names[np.argsort(-counts, kind="stable")[:limit]]
    return sequence[np.isin(sequence, kept)]


class _Columns:
    """Collects the examples of one client after another."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.parts: list[tuple[Ids, Ids]] = []

    def add(self, sequence: Ids, vocabulary: Ids, rng: np.random.Generator) -> None:
        """The examples of one sequence; negatives are other names of the sorted `vocabulary`."""
        if len(sequence) <= self.window:
            self.parts.append((np.empty((0, self.window), np.int64), np.empty((0,), np.int64)))
            return
        windows = np.lib.stride_tricks.sliding_window_view(sequence, self.window + 1)
        history, true = windows[:, :-1], windows[:, -1]
        other = rng.integers(len(vocabulary) - 1, size=len(true))
        other += other >= np.searchsorted(vocabulary, true)  # skips the true name
        candidates = np.stack([true, vocabulary[other]], 1)  # (positions, 2)
        self.parts.append((np.repeat(history, 2, axis=0), candidates.reshape(-1)))

    def joined(self) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        history = torch.from_numpy(np.concatenate([h for h, _ in self.parts]))
        candidate = torch.from_numpy(np.concatenate([c for _, c in self.parts]))
        y = (torch.arange(len(candidate)) + 1) % 2
        offsets = torch.tensor([0, *(len(c) for _, c in self.parts)]).cumsum(0)
        return {"history": history, "candidate": candidate, "y": y}, offsets


def _sources(root: Path) -> Iterator[str]:
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in SKIPPED]
        for name in files:
            if name.endswith(".py") and Path(folder, name).is_file():  # no link to nothing, as an editor's lock is
                yield Path(folder, name).relative_to(root).as_posix()


def _digest(root: Path, files: list[str]) -> str:
    facts = [str(_FORMAT), sys.version, *(f"{f}|{digest_of(root / f)}" for f in files)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _identifiers(path: Path) -> list[str]:
    """The names in a source file; none if it does not tokenize."""
    try:
        with path.open("rb") as file:
            return [
                token.string
                for token in tokenize.tokenize(file.readline)
                if token.type == tokenize.NAME and not keyword.iskeyword(token.string)
            ]
    except (tokenize.TokenError, SyntaxError, UnicodeDecodeError, LookupError):
        return []


def _tokenized(root: Path, files: list[str]) -> _Tokens:
    number: dict[str, int] = {}
    ids: list[int] = []
    offsets = [0]
    for file in files:
        ids.extend(number.setdefault(name, len(number)) for name in _identifiers(root / file))
        offsets.append(len(ids))
    modules = [file[: -len(".py")].replace("/", ".").removesuffix(".__init__") for file in files]
    return _Tokens(modules, list(number), np.array(ids, np.int64), np.array(offsets, np.int64))


def _save(path: Path, tokens: _Tokens) -> None:
    with whole_file(path) as file:
        np.savez(
            file,
            modules=np.frombuffer("\n".join(tokens.modules).encode(), np.uint8),
            names=np.frombuffer("\n".join(tokens.names).encode(), np.uint8),
            ids=tokens.ids.astype(np.int32),
            offsets=tokens.offsets,
        )


def _load(path: Path) -> _Tokens:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
        modules, names = (found[key].tobytes().decode().split("\n") for key in ("modules", "names"))
        tokens = _Tokens(modules, names, found["ids"].astype(np.int64), found["offsets"].astype(np.int64))
    if len(tokens.offsets) != len(modules) + 1 or tokens.offsets[-1] != len(tokens.ids):
        raise ValueError(f"{path} does not hold what it should")
    return tokens
