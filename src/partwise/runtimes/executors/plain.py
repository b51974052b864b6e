"""One client after another, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from partwise.core.aggregate import Accumulator
from partwise.core.model import Values
from partwise.core.plan import Job, LocalPlan, Trained
from partwise.core.rng import generator, numpy_generator
from partwise.core.scratch import Scratch
from partwise.core.summing import Outcome, SumJob, Summed
from partwise.runtimes.devices import seed_device_
from partwise.runtimes.executors.adding import add_one_
from partwise.runtimes.executors.groups import trainable_names
from partwise.runtimes.executors.solo import Solo, mean_and_grads

__all__ = ["Plain", "batches"]

_CPU = torch.device("cpu")


def batches(plan: LocalPlan, examples: int, seed: int) -> Iterator[Tensor]:
    """The positions of each local step's batch, (batch,) int64: passes in new orders, short last batches kept."""
    size = min(plan.batch_size or examples, examples)
    left, epoch = plan.num_steps(examples), 0
    while left:
        order = torch.from_numpy(numpy_generator(seed, "batches", epoch).permutation(examples))
        yield from order.split(size)[:left]
        left -= min(left, -(-examples // size))
        epoch += 1


@dataclass(frozen=True)
class Plain:
    """The executor that all others are compared with: a loop of gradient steps per client.

    Args:
        autograd: find every gradient by autograd. By default it is found without, where the gradient of all that a
            model does is known and a trial, once per model and shapes, gives the same bits: the result is the same.

    Example:
        >>> Plain().run([])
        []
    """

    autograd: bool = False
    _scratch: Scratch = field(default_factory=Scratch, init=False, repr=False, compare=False)
    _solo: Solo = field(default_factory=Solo, init=False, repr=False, compare=False)

    def run(self, jobs: Sequence[Job]) -> Sequence[Trained | Exception]:
        with torch.random.fork_rng(devices=[]):
            return [self._one(job) for job in jobs]

    def add(self, job: SumJob) -> Summed:
        """The sum of what jobs change, each added while it is still in the cache."""
        total, outcomes = Accumulator(job.params), list[Outcome | Exception]()
        with torch.random.fork_rng(devices=[]):
            for share in job.shares():
                outcomes.append(share if isinstance(share, Exception) else add_one_(total, share, self._one(share.job)))
        return Summed(total.state, outcomes)

    def _one(self, job: Job) -> Trained | Exception:
        try:
            return _train(job, self._scratch, None if self.autograd else self._solo)
        except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
            return error


def _train(job: Job, scratch: Scratch, solo: Solo | None) -> Trained:
    plan, data, loss_of, step_ = job.plan, job.data, job.plan.loss, job.plan.optimizer.step_
    params = scratch.clone(job.start)
    names = trainable_names(job)
    values: Values = {n: t.detach() for n, t in params.items()}  # the same memory, out of autograd's sight
    tape = solo.tape(job, names) if solo is not None else None
    leaves = [params[n].requires_grad_() for n in names] if tape is None else []
    state = plan.optimizer.init({n: values[n] for n in names})
    rng, steps = generator(job.seed, "loss"), 0
    losses: list[Tensor] = []
    found: Sequence[Tensor | None]
    # dropout layers know no generator but the global one
    seed_device_(next((t.device for t in params.values()), _CPU), job.seed)
    for at in batches(plan, len(data), job.seed):
        if tape is not None:
            loss, found = mean_and_grads(tape, values, data.batch(at), names)
        else:
            loss = loss_of(params, data.batch(at), rng)
            found = torch.autograd.grad(loss, leaves, allow_unused=True) if leaves else ()
        grads = {n: torch.zeros_like(values[n]) if g is None else g for n, g in zip(names, found, strict=True)}
        if grads:  # else nothing of what is held may move
            for term in plan.gradient:
                grads = term(values, grads, steps)
            state = step_(values, grads, state)
        losses.append(loss.detach())
        steps += 1
    change = {name: t.sub_(job.start[name].detach()) for name, t in values.items()}
    return Trained(change, steps, float(torch.stack(losses).double().mean()) if losses else 0.0)
