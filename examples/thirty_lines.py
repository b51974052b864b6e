"""The whole of it in thirty lines: your data, your module, your transform."""

import torch
from torch import nn

import partwise as pw

rng = torch.Generator().manual_seed(1)
item = torch.randint(0, 300, (6000,), generator=rng)
user = (item + torch.randint(0, 12, (6000,), generator=rng)) % 40  # each user meets a part of the items only
liked = (torch.sin(item * 0.7) + 0.3 * torch.randn(6000, generator=rng) > 0).float()
population = pw.from_arrays({"item": item, "liked": liked}, client=user.tolist(), test_share=0.2)


class Likes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(300, 1)

    def forward(self, item: torch.Tensor) -> torch.Tensor:
        return self.items(item).squeeze(1)


loss = pw.BinaryCrossEntropy(target="liked")
model = pw.Model(Likes, loss, inputs=("item",), tables={"items.weight": ("item",)})
workload = pw.Workload(model, population, metrics=(pw.AUC(target="liked"),))
algorithm = pw.FedSubAvg("count", pw.LocalTraining(pw.SGD(lr=5.0), steps=10, batch_size=16))
experiment = pw.Experiment(workload, algorithm, pw.Synchronous(cohort=10, rounds=30), client=[pw.Clip(20.0)])
result = experiment.run()
print(f"AUC {result.value('auc', 'pooled'):.3f} after 30 rounds; see {result.folder}")
