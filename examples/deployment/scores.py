"""What a run has reached, and what the same experiment reaches in the simulator."""

from __future__ import annotations

import tempfile
from pathlib import Path


def simulated(spec: Path, change: str) -> list[float]:
    """The AUC of the same experiment in the simulator, under three seeds of sampling and training."""
    from partwise.experiment.spec import load

    found = []
    for seed in (1, 2, 3):
        experiment = load(spec, [change, f"seed={seed}", "evaluation.every=1000"])
        with tempfile.TemporaryDirectory() as folder:
            experiment.run(Path(folder) / "run")
            found.append(auc(Path(folder) / "run", "pooled"))  # the same examples as the server's test set
    return found


def auc(run: Path, scope: str) -> float:
    """The last one of a run."""
    from partwise.experiment.store import RunStore

    with RunStore(run, "read") as store:
        return float(next(row["value"] for row in reversed(store.metrics(scope=scope)) if row["name"].lower() == "auc"))
