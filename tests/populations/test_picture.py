from __future__ import annotations

import pytest
import torch
from torch import nn

from partwise.core.model import BinaryCrossEntropy, CrossEntropy, Model
from partwise.core.population import Examples
from partwise.populations.arrays import ArrayPopulation
from partwise.populations.picture import describe, draw
from partwise.populations.sources import from_arrays


def rows() -> tuple[ArrayPopulation, Model]:
    """Rows held: {0, 1}, {0, 2, 5}, {0}; row 0 has heat 3, the others 1, and 3 and 4 are held by nobody."""
    population = ArrayPopulation(
        {
            "a": torch.tensor([[0, 1], [0, 2], [5, 0], [0, 0]]),
            "b": torch.tensor([1, 2, 2, 0]),
            "y": torch.tensor([0, 1, 1, 0]),
        },
        torch.tensor([0, 1, 3, 4]),
        {"a": torch.tensor([[3, 3]]), "b": torch.tensor([3]), "y": torch.tensor([1])},
        torch.tensor([0, 0, 1, 1]),
        central=Examples({"y": torch.zeros(6)}),
    )
    return population, Model(lambda: nn.Embedding(6, 2), BinaryCrossEntropy(), ("a",), {"weight": ("a", "b")})


def test_an_ending_that_is_no_picture(tmp_path):
    population, model = rows()
    with pytest.raises(ValueError, match=r"x\.xyz'\): must end in .*, got '\.xyz'\. Use \.png, \.svg or \.pdf"):
        draw(population, tmp_path / "x.xyz", model=model)
    draw(population, tmp_path / "x.SVG", model=model)
    assert (tmp_path / "x.SVG").read_text().startswith("<?xml")
    assert [file.name for file in tmp_path.iterdir()] == ["x.SVG"]


def test_numbers():
    population, model = rows()
    found = describe(population, model)
    assert found["clients"] == 3
    assert found["examples"] == {"total": 4, "min": 1, "p10": 1, "median": 1, "p90": pytest.approx(1.8), "max": 2}
    assert found["test_examples"]["total"] == 1
    assert found["central_test_examples"] == 6
    table = found["tables"]["weight"]
    assert table["rows"] == 4
    assert (table["held"]["min"], table["held"]["median"], table["held"]["max"]) == (1, 2, 3)
    assert (table["heat"]["min"], table["heat"]["median"], table["heat"]["max"]) == (1, 1, 3)


def test_numbers_without_a_model():
    assert describe(rows()[0])["tables"] == {}


def test_picture_of_labels_is_stacked_to_the_sizes(tmp_path):
    population = from_arrays({"y": [0, 1, 1, 2, 0, 2, 2]}, [0, 0, 0, 0, 1, 1, 1])
    figure = draw(population, tmp_path / "labels.png")
    assert (tmp_path / "labels.png").read_bytes().startswith(b"\x89PNG")
    bars = figure.axes[0].patches
    assert [[b.get_height() for b in bars[2 * k : 2 * k + 2]] for k in range(3)] == [[1, 1], [2, 0], [1, 2]]
    assert [b.get_y() for b in bars[4:]] == [3, 1]


def test_a_picture_is_written_where_it_is_wanted(tmp_path):
    population = from_arrays({"y": [0, 1, 2]}, [4, 4, 5])
    draw(population, tmp_path / "drawn")
    assert [path.name for path in tmp_path.iterdir()] == ["drawn"]
    assert (tmp_path / "drawn").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(IsADirectoryError):
        draw(population, tmp_path)


def test_picture_of_rows(tmp_path):
    population, model = rows()
    figure = draw(population, tmp_path / "rows.svg", model=model)
    assert "<svg" in (tmp_path / "rows.svg").read_text()
    heat = figure.axes[3].get_lines()[0]
    assert heat.get_xdata().tolist() == [1, 2, 3, 4]
    assert heat.get_ydata().tolist() == [3, 1, 1, 1]
    assert "median 2, 1 to 3" in figure.axes[2].get_title()


def test_picture_with_many_labels_and_clients():
    population = from_arrays({"y": list(range(400))}, [i // 2 for i in range(400)])
    figure = draw(population)
    assert len(figure.axes[0].get_legend().get_texts()) == 20
    assert figure.axes[0].get_xlabel() == "client (one in 4 drawn)"
    tops = {}
    for bar in figure.axes[0].patches:
        tops[bar.get_x()] = max(tops.get(bar.get_x(), 0), bar.get_y() + bar.get_height())
    assert set(tops.values()) == {2}


@pytest.mark.parametrize("columns", [{"y": [c % 2 for c in range(200)]}, {"x": [0.5 * c for c in range(200)]}])
def test_bars_stand_at_the_numbers_of_their_clients(columns):
    """Of 200 clients the first, the fifth and so on are drawn, up to client 196."""
    axes = draw(from_arrays(columns, list(range(200)))).axes[0]
    places = sorted({round(bar.get_x() + bar.get_width() / 2) for bar in axes.patches})
    assert places == list(range(0, 200, 4))
    ticks = dict(zip(axes.get_xticks(), (text.get_text() for text in axes.get_xticklabels()), strict=True))
    assert ticks[100] == "100"


def test_few_clients_have_whole_numbers():
    axes = draw(rows()[0]).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels() if text.get_text()] == ["0", "1", "2"]


@pytest.mark.parametrize("columns", [{"x": [1.0, 2.0, 3.0]}, {"y": [0.5, 1.5, 2.5]}])
def test_picture_without_labels(columns):
    figure = draw(from_arrays(columns, [0, 1, 1]))
    assert [b.get_height() for b in figure.axes[0].patches] == [1, 2]


def test_model_without_tables_draws_one_row():
    model = Model(lambda: nn.Linear(1, 2), CrossEntropy())
    assert len(draw(rows()[0], model=model).axes) == 2
