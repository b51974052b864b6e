from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from partwise.core.model import CrossEntropy, Model
from partwise.workloads.models import AttentionRecommender, ImageCNN, ImageMLP, NextSymbol, SparseLinear


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_attention_recommender_against_loops():
    torch.manual_seed(3)
    net = AttentionRecommender(9, dim=3, hidden=4).double().requires_grad_(False)
    table = net.items.weight.tolist()

    def mlp(layers: nn.Sequential, x: list[float]) -> float:
        first, last = layers[0], layers[2]
        hidden = [
            max(0.0, sum(w * v for w, v in zip(row, x, strict=True)) + b)
            for row, b in zip(first.weight.tolist(), first.bias.tolist(), strict=True)
        ]
        return sum(w * h for w, h in zip(last.weight[0].tolist(), hidden, strict=True)) + float(last.bias)

    def logit(history: list[int], candidate: int) -> float:
        c = table[candidate]
        scores = [
            mlp(net.attend, [*h, *c, *(a * b for a, b in zip(h, c, strict=True))])
            for h in map(table.__getitem__, history)
        ]
        total = sum(math.exp(s) for s in scores)
        user = [sum(math.exp(s) / total * table[j][k] for s, j in zip(scores, history, strict=True)) for k in range(3)]
        return mlp(net.score, [*user, *c, *(a * b for a, b in zip(user, c, strict=True))])

    history, candidate = [[0, 8, 8, 2], [5, 1, 3, 7]], [4, 5]
    got = net(torch.tensor(history), torch.tensor(candidate))
    assert got.tolist() == pytest.approx([logit(h, c) for h, c in zip(history, candidate, strict=True)], abs=1e-12)


def test_attention_recommender_works_on_few_rows():
    net = AttentionRecommender(50, dim=4)
    params = {name: p.detach() for name, p in net.named_parameters()}
    held = torch.tensor([3, 17, 40])
    history, candidate = torch.tensor([[0, 2, 2], [1, 1, 0]]), torch.tensor([1, 2])
    part = functional_call(net, {**params, "items.weight": params["items.weight"][held]}, (history, candidate))
    assert torch.equal(part, net(held[history], held[candidate]))


def test_attention_recommender_dense_part_is_small():
    net = AttentionRecommender(13_549, dim=16, hidden=8)
    dense = count(net) - 13_549 * 16
    assert dense == 2 * (48 * 8 + 8 + 8 + 1) == 802
    assert (300 * (16 + 1) + dense) / count(net) < 0.03  # 300 rows and their ids: StdlibCode's largest uplink


def test_parameter_counts_of_the_image_models():
    assert count(ImageCNN(1, 28, 32, 64, 512)) == 1_663_370  # McMahan et al.
    assert count(ImageCNN()) == 215_370
    assert count(ImageMLP()) == 199_210  # McMahan et al., "2NN"


@pytest.mark.parametrize(
    ("net", "widths", "shape"),
    [
        (ImageCNN(conv1=6, conv2=10, dense=14), ImageCNN.widths(), (1, 28, 28)),
        (ImageCNN(3, 32, 6, 10, 14), ImageCNN.widths(32), (3, 32, 32)),
        (ImageMLP(20, 12, 4), ImageMLP.widths(), (20,)),
    ],
)
def test_thin_networks_are_prefixes(net, widths, shape):
    """A network cut by `widths` equals the whole one whose other units are silent."""
    params = {name: p.detach().clone() for name, p in net.named_parameters()}
    assert widths.keys() == params.keys()
    half, silent = {}, {}
    for name, axes in widths.items():
        part, mask = params[name], torch.ones_like(params[name])
        for axis, width in enumerate(axes):
            if width is not None:
                unit = int(width.split("*")[1]) if "*" in width else 1
                kept = part.shape[axis] // unit // 2 * unit
                part = part.narrow(axis, 0, kept)
                mask.narrow(axis, kept, mask.shape[axis] - kept).zero_()
        half[name], silent[name] = part, params[name] * mask
    x = torch.randn(5, *shape)
    thin = functional_call(net, half, (x,))
    assert thin.shape == (5, params["head.bias"].numel())
    assert torch.allclose(thin, functional_call(net, silent, (x,)), atol=1e-5)


def test_next_symbol_against_torch():
    torch.manual_seed(5)
    net = NextSymbol(11, embedding=3, hidden=4, layers=2)
    reference = nn.LSTM(3, 4, num_layers=2, batch_first=True)
    with torch.no_grad():
        for i, layer in enumerate(net.layers):
            getattr(reference, f"weight_ih_l{i}").copy_(layer.inputs.weight)
            getattr(reference, f"weight_hh_l{i}").copy_(layer.recur.weight)
            getattr(reference, f"bias_ih_l{i}").copy_(layer.inputs.bias)
            getattr(reference, f"bias_hh_l{i}").zero_()
    history = torch.randint(11, (6, 9), dtype=torch.uint8)
    states, _ = reference(net.embed(history.long()))
    assert torch.allclose(net(history), net.head(states[:, -1]), atol=1e-6)


def test_next_symbol_can_be_stacked():
    nets = [NextSymbol(7, 3, 4) for _ in range(3)]
    stacked = {n: torch.stack([dict(net.named_parameters())[n] for net in nets]) for n, _ in nets[0].named_parameters()}
    history = torch.randint(7, (3, 5, 6))
    got = torch.func.vmap(lambda p, h: functional_call(nets[0], p, (h,)))(stacked, history)
    for i, net in enumerate(nets):
        assert torch.allclose(got[i], net(history[i]), atol=1e-6)


def test_sparse_linear_sums_the_active_weights():
    net = SparseLinear(6)
    features = torch.tensor([[0, 3, 5], [1, 1, 2]])
    assert net(features).tolist() == [0, 0]
    with torch.no_grad():
        net.weights.weight.copy_(torch.tensor([[1.0], [10.0], [100.0], [0.5], [7.0], [-2.0]]))
    assert net(features).tolist() == [-0.5, 120.0]


def test_models_follow_the_seed():
    model = Model(lambda: ImageMLP(4, 3, 2), CrossEntropy())
    same, other = model.init(1), model.init(2)
    assert torch.equal(same["head.weight"], model.init(1)["head.weight"])
    assert not torch.equal(same["head.weight"], other["head.weight"])
