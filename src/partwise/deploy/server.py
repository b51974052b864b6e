"""The experiment of a deployment's folder."""

from __future__ import annotations

from dataclasses import replace

from partwise.core.population import Dataset
from partwise.core.workload import Workload
from partwise.deploy.enrolled import Enrolled
from partwise.deploy.files import ServerFile
from partwise.deploy.post import Post
from partwise.deploy.runtime import Deployed
from partwise.experiment.experiment import Experiment
from partwise.experiment.spec import load
from partwise.populations.files import from_files

__all__ = ["experiment_of"]


def experiment_of(file: ServerFile, post: Post) -> Experiment:
    """The experiment of a deployment, with nothing changed but where it runs.

    Args:
        file: what the server knows.
        post: carries the batches.
    """
    described = load(file.spec)
    source = described.workload
    workload = source if isinstance(source, Workload) else source.build(described.seed)
    test: Dataset | None = from_files(file.test).data(0) if file.test is not None else None
    runtime = Deployed(post, file.patience_seconds, file.max_message_bytes)
    population = Enrolled(file.members, test=test)
    return replace(described, workload=Workload(workload.model, population, workload.metrics), runtime=runtime)
