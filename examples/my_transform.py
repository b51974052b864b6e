"""A transform in a file outside the package: it keeps only the sign of what a client sends, and the mean magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import partwise as pw
from partwise.core.update import map_values


@dataclass(frozen=True)
class SignOnly:
    """strength * mean|v| * sign(v), parameter by parameter.

    Args:
        strength: factor on the magnitude, > 0.
    """

    strength: float = 1.0

    def init(self, params: Any) -> Any:
        return ()

    def apply(self, update: pw.Update, state: Any, rng: Any) -> tuple[pw.Update, Any]:
        return map_values(update, lambda v: v.sign() * v.abs().mean() * self.strength if v.numel() else v), state
