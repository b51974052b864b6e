"""Shakespeare's plays, one client per role: the next character or word.

Shapes: n examples, t window.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partwise.core.errors import DataError
from partwise.core.metrics import Accuracy, Loss, Perplexity
from partwise.core.model import CrossEntropy, Model
from partwise.core.workload import Workload
from partwise.populations.arrays import ArrayPopulation
from partwise.populations.availability import Always, Availability
from partwise.populations.profiles import Constant, Profiles
from partwise.populations.reliability import Reliability, Steady
from partwise.workloads.models import NextSymbol

__all__ = ["ALPHABET", "Shakespeare", "characters", "read_roles"]

Ids = NDArray[np.int64]

# Fixed, so that the model does not depend on which plays are there: the newline and printable ASCII.
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
_SPEECH = re.compile(r"([A-Za-z][A-Za-z'’. -]*)\t(.*)")
_HEADING = re.compile(r"(ACT|SCENE|EPILOGUE|PROLOGUE|INDUCTION)\b")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*|[.,;:!?]")


@dataclass(frozen=True)
class Shakespeare:
    """The next character or word of a role, from a folder of plays.

    A speech begins with `NAME<tab>line` and goes on in lines that begin with a tab; stage directions in brackets
    are left out. A client is a role of a play; its last `test_share` of text is its test set, and no window
    reaches across the cut. The plays are in the public domain.

    Args:
        folder: holds the plays, one `.txt` file each, for instance those of
            github.com/martin-gorner/tensorflow-rnn-shakespeare.
        unit: `char`: 96 symbols; `word`: the `vocabulary` most frequent words and marks, and one for all others.
        window: t, symbols of history. Default 0: 80 characters or 10 words.
        stride: symbols between two examples. Default 0: 8 characters or 1 word.
        min_chars: characters a role must have to be a client.
        max_clients: the largest roles only. 0: all.
        max_examples_per_client: the first ones only, for training and test each. 0: all.
        vocabulary: words that have a row, for `unit="word"`.
        embedding: width of a symbol's row.
        hidden: LSTM units.
        layers: LSTM layers.
        test_share: in [0, 1).
        profiles: how fast the clients are.
        availability: when they could answer.
        reliability: what becomes of their tasks.

    Source: McMahan et al., AISTATS 2017, arXiv 1602.05629, section 3; Caldas et al., "LEAF", arXiv 1812.01097.
    Differs: other edition and parse, hence other clients than the published 1,146.
    """

    folder: Path | str
    unit: str = "char"
    window: int = 0
    stride: int = 0
    min_chars: int = 1000
    max_clients: int = 0
    max_examples_per_client: int = 0
    vocabulary: int = 2000
    embedding: int = 8
    hidden: int = 128
    layers: int = 1
    test_share: float = 0.2
    profiles: Profiles = field(default_factory=Constant)
    availability: Availability = field(default_factory=Always)
    reliability: Reliability = field(default_factory=Steady)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if self.unit not in ("char", "word"):
            raise ValueError(f"Shakespeare(unit={self.unit!r}): unit must be 'char' or 'word', got {self.unit!r}.")
        for name in ("window", "stride", "max_clients", "max_examples_per_client"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"Shakespeare({name}={getattr(self, name)}): {name} must be at least 0, got {getattr(self, name)}. "
                    "Use 0 for the default."
                )
        for name in ("min_chars", "vocabulary", "embedding", "hidden", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"Shakespeare({name}={getattr(self, name)}): {name} must be at least 1, got {getattr(self, name)}. "
                    "Leave it out for the default."
                )
        if not 0 <= self.test_share < 1:
            raise ValueError(
                f"Shakespeare(test_share={self.test_share}): test_share must be in [0, 1), got {self.test_share}. "
                "Use 0.2 for the last fifth."
            )

    def build(self, seed: int) -> Workload:
        roles = read_roles("Shakespeare", Path(self.folder), self.min_chars, self.max_clients)
        texts = [text for _, text in roles]
        sequences, symbols = characters(texts) if self.unit == "char" else _words(texts, self.vocabulary)
        train, test, names = [], [], []
        for (name, _), sequence in zip(roles, sequences, strict=True):
            cut = int(len(sequence) * (1 - self.test_share))
            early = self._examples(sequence[:cut])
            if not len(early[1]):
                continue
            train.append(early)
            test.append(self._examples(sequence[cut:]))
            names.append(name)
        if not names:
            raise DataError(
                f"Shakespeare(window={self.window}): needs a role with more text than a window, got none. "
                "Shorten the window."
            )
        columns, offsets = _joined(train)
        test_columns, test_offsets = _joined(test)
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
        loss = CrossEntropy()
        model = Model(
            partial(NextSymbol, symbols, self.embedding, self.hidden, self.layers),
            loss,
            inputs=("history",),
            tables={"embed.weight": ("history",)} if self.unit == "word" else {},
        )
        return Workload(model, population, (Accuracy(), Loss(loss), Perplexity(loss)))

    def _examples(self, sequence: Ids) -> tuple[Ids | NDArray[np.uint8], Ids]:
        window = self.window or (80 if self.unit == "char" else 10)
        stride = self.stride or (8 if self.unit == "char" else 1)
        # A character fits a byte, and there are millions of them.
        kind = np.uint8 if self.unit == "char" else np.int64
        if len(sequence) <= window:
            return np.empty((0, window), kind), np.empty(0, np.int64)
        windows = np.lib.stride_tricks.sliding_window_view(sequence, window + 1)[::stride]
        if self.max_examples_per_client:
            windows = windows[: self.max_examples_per_client]
        return windows[:, :-1].astype(kind), windows[:, -1].copy()


def _parsed(play: str) -> dict[str, str]:
    """Role -> its speeches, joined by newlines."""
    speeches: dict[str, list[str]] = {}
    role = ""
    for line in re.sub(r"\[[^\]]{0,1000}\]", "", play).split("\n"):
        begins = _SPEECH.fullmatch(line)
        if begins:
            role = "" if _HEADING.match(begins[1]) else begins[1].strip()
        elif not line.startswith("\t"):
            role = ""
        text = (begins[2] if begins else line).strip()
        if role and text:
            speeches.setdefault(role, []).append(text)
    return {role: "\n".join(lines) for role, lines in speeches.items()}


def read_roles(part: str, folder: Path, min_chars: int, max_roles: int = 0) -> list[tuple[str, str]]:
    """Names and texts of roles, by play and then by role: `hamlet/HORATIO`.

    Args:
        part: whose folder it is, for messages.
        folder: holds the plays.
        min_chars: characters that a role must have.
        max_roles: the largest ones only; 0 for all.

    Raises:
        DataError: no plays, or no role that long.
    """
    plays = sorted(folder.glob("*.txt"))
    if not plays:
        raise DataError(
            f"{part}(folder={str(folder)!r}): needs plays as .txt files, got none. Name a folder such as "
            "shakespeare/ of github.com/martin-gorner/tensorflow-rnn-shakespeare."
        )
    roles = [
        (f"{play.stem}/{role}", text)
        for play in plays
        for role, text in sorted(_parsed(play.read_text("utf-8", errors="replace")).items())
        if len(text) >= min_chars
    ]
    if not roles:
        raise DataError(
            f"{part}(folder={str(folder)!r}, min_chars={min_chars}): needs one role that long, "
            "got none. Lower min_chars, or check that speeches begin with NAME<tab>line."
        )
    if max_roles:
        largest = sorted(roles, key=lambda role: (-len(role[1]), role[0]))[:max_roles]
        roles = sorted(largest)
    return roles


def characters(texts: list[str]) -> tuple[list[Ids], int]:
    """The numbers of a text's characters in `ALPHABET`, and how many there are.

    All others of Latin-1, such as letters with accents, are a space, and those beyond a question mark.
    """
    number = np.full(256, ALPHABET.index(" "))
    number[[ord(c) for c in ALPHABET]] = np.arange(len(ALPHABET))
    return [number[np.frombuffer(text.encode("latin-1", "replace"), np.uint8)] for text in texts], len(ALPHABET)


def _words(texts: list[str], vocabulary: int) -> tuple[list[Ids], int]:
    """Row 0 stands for all words without one."""
    split = [_WORD.findall(text.lower()) for text in texts]
    counts = Counter(word for words in split for word in words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:vocabulary]
    number = {word: i for i, word in enumerate(ranked, 1)}
    return [np.array([number.get(word, 0) for word in words], np.int64) for words in split], len(ranked) + 1


def _joined(parts: list[tuple[Ids | NDArray[np.uint8], Ids]]) -> tuple[dict[str, Tensor], Tensor]:
    history = torch.from_numpy(np.concatenate([h for h, _ in parts]))
    y = torch.from_numpy(np.concatenate([labels for _, labels in parts]))
    offsets = torch.tensor([0, *(len(labels) for _, labels in parts)]).cumsum(0)
    return {"history": history, "y": y}, offsets
