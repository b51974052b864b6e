"""The contract suite on a part of one's own: one call."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from my_transform import SignOnly

from partwise.testing import check

check(SignOnly(strength=0.5))
print("SignOnly keeps the contract")
