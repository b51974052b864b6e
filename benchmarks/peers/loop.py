"""The yardstick: what an engineer would write for this one algorithm, and nothing else."""

from __future__ import annotations

import networks
import torch
import torch.nn.functional as F
import work


def main() -> None:
    task = work.task()
    torch.set_num_threads(task.threads)
    torch.manual_seed(task.seed)
    data = work.load(task.seed)
    images, labels = networks.tensors(data)
    watch = work.Watch()
    net = networks.network(task.model)
    server = [p.detach().clone() for p in net.parameters()]
    for cohort in work.cohorts(task):
        total = [torch.zeros_like(p) for p in server]
        for client in cohort:
            with torch.no_grad():
                for p, value in zip(net.parameters(), server, strict=True):
                    p.copy_(value)
            optimizer = torch.optim.SGD(net.parameters(), lr=task.lr)
            for x, y in networks.batches(images[client], labels[client]):
                optimizer.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimizer.step()
            with torch.no_grad():
                for t, p in zip(total, net.parameters(), strict=True):
                    t.add_(p, alpha=1 / len(cohort))
        server = total
        watch.lap()
    with torch.no_grad():
        for p, value in zip(net.parameters(), server, strict=True):
            p.copy_(value)
    work.report(task, "torch", watch, networks.accuracy(net, data), f"{task.threads}")


if __name__ == "__main__":
    main()
