from __future__ import annotations

import math
import re
import sys

import matplotlib as mpl
import pytest

from partwise.experiment import plots
from partwise.experiment.inline_svg import inline_svg
from toy_runs import curve, full_run, write_run


def test_figures_are_matplotlib_figures_and_leave_pyplot_alone(tmp_path):
    before, had_pyplot = mpl.rcParams.copy(), "matplotlib.pyplot" in sys.modules
    runs = [full_run(tmp_path / "a", 0.02, 100), str(full_run(tmp_path / "b", 0.03, 5000))]
    for draw in (getattr(plots, name) for name in plots.__all__ if name.islower() and name != "differ_much"):
        figure = draw(runs)
        assert figure.axes[0].get_xlabel()
        assert figure.axes[0].get_ylabel()
    assert mpl.rcParams.copy() == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


def test_curves_show_the_record(tmp_path):
    runs = [full_run(tmp_path / "a", 0.02, 100), full_run(tmp_path / "b", 0.03, 5000)]
    axes = plots.metric_by_bytes(runs, target=0.7).axes[0]
    assert axes.get_xscale() == "log"
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["a"].get_xdata().tolist() == [600, 1200, 1800, 2400, 3000, 3600]  # bytes at 0 have no logarithm
    assert lines["b"].get_ydata().tolist() == pytest.approx([0.56, 0.62, 0.68, 0.74, 0.80, 0.86])
    assert lines["a"].get_color() != lines["b"].get_color()
    assert plots.metric_by_bytes(runs[:1]).axes[0].get_xscale() == "linear"
    axes = plots.metric_by_time(runs).axes[0]
    assert axes.get_xlabel() == "Virtual time in minutes"
    assert axes.lines[0].get_xdata().tolist() == [0, 1, 2, 3, 4, 5, 6]
    axes = plots.client_scores(runs[:1]).axes[0]
    assert (axes.lines[0].get_xdata().tolist(), axes.lines[0].get_ydata().tolist()) == ([0, 50, 100], [0.4, 0.7, 0.9])
    axes = plots.heat(runs).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [1, 1, 2, 7, 8, 40]
    assert axes.lines[0].get_ydata().tolist() == [4, 4, 2, 2, 1, 1]
    axes = plots.metric_by_width(runs[:1]).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [0.25, 0.5, 1.0]
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([0.59, 0.69, 0.74])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.25", "0.5", "1"]
    values, edges, _ = plots.participation(runs[:1]).axes[0].patches[0].get_data()
    assert values.tolist() == [1, 1, 1, 1]  # client 2 never, 3 once, 1 twice, 0 three times
    assert edges.tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]


def test_figures_with_nothing_to_show(tmp_path):
    bare = write_run(tmp_path / "run", [(0, 0.0, 0, 0, math.nan)])
    for name in (
        "metric_by_version",
        "training_loss",
        "client_scores",
        "client_band",
        "participation",
        "heat",
        "metric_by_width",
    ):
        with pytest.raises(LookupError, match="these runs recorded nothing to draw"):
            getattr(plots, name)([bare])
    with pytest.raises(LookupError, match="no time passed"):
        plots.metric_by_time([bare])
    with pytest.raises(LookupError, match="no tables were counted"):
        plots.rows_per_client([bare])


def test_many_clients_are_thinned(tmp_path):
    run = write_run(tmp_path / "run", curve(0.01, 50), clients=[(c, c / 5000, 3) for c in range(5000)])
    line = plots.client_scores([run]).axes[0].lines[0]
    assert len(line.get_xdata()) <= 400
    assert (line.get_ydata()[0], line.get_ydata()[-1]) == (0.0, 4999 / 5000)


def test_inline_svg_takes_colours_from_the_page(tmp_path):
    figure = plots.metric_by_version([full_run(tmp_path / "a", 0.02, 100)])
    svg = inline_svg(figure, "one", 'what "it" shows')
    assert svg.startswith('<svg viewBox="0 0 460.8 288" role="img" aria-label="what &quot;it&quot; shows">')
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert {"var(--run-0)", "var(--ink)", "var(--grid)", "var(--line)"} <= set(re.findall(r"var\([^)]*\)", svg))


def test_scores_by_size_average_groups_of_clients(tmp_path):
    numbers = [3 * c + 1 for c in range(21)]
    population = {"clients": 21, "numbers": numbers, "examples": [100 - c for c in range(21)]}
    scores = [(number, 0.3 + 0.02 * c, 5) for c, number in enumerate(numbers[:20])] + [(numbers[20], math.nan, 5)]
    run = write_run(tmp_path / "run", curve(0.01, 50), clients=scores, population=population)
    line = plots.client_scores_by_size([run]).axes[0].lines[0]
    assert line.get_xdata().tolist() == [81.5 + 2 * group for group in range(10)]  # 81 and 82, 83 and 84, ...
    assert line.get_ydata().tolist() == pytest.approx([0.67 - 0.04 * group for group in range(10)])
    one = write_run(tmp_path / "one", curve(0.01, 50), clients=scores[:1], population=population)
    with pytest.raises(LookupError, match="nothing to draw"):
        plots.client_scores_by_size([one])


def test_clients_of_one_size_are_one_group(tmp_path):
    scores = [(c, 0.02 * (c * 7 % 30), 5) for c in range(30)]
    sizes = {"clients": 30, "numbers": None, "examples": [8] * 24 + [40] * 6}
    two = write_run(tmp_path / "two", curve(0.01, 50), clients=scores, population=sizes)
    line = plots.client_scores_by_size([two]).axes[0].lines[0]
    assert line.get_xdata().tolist() == [8, 40]
    means = [sum(s for c, s, _ in scores if (c < 24) == is_small) / n for is_small, n in ((True, 24), (False, 6))]
    assert line.get_ydata().tolist() == pytest.approx(means)
    alike = write_run(tmp_path / "alike", curve(0.01, 50), clients=scores, population={**sizes, "examples": [8] * 30})
    with pytest.raises(LookupError, match="nothing to draw"):
        plots.client_scores_by_size([alike])


def test_training_loss_is_smoothed(tmp_path):
    losses = [float(v % 2) for v in range(60)]
    raw, smooth = plots.training_loss([write_run(tmp_path / "run", curve(0.01, 50), losses=losses)]).axes[0].lines
    assert raw.get_ydata().tolist() == losses
    assert smooth.get_ydata()[30] == pytest.approx(4 / 7)  # of 27 to 33, the odd ones
    assert smooth.get_ydata()[0] == pytest.approx(2 / 4)


def test_many_runs_leave_the_curves_their_room_and_are_told_apart(tmp_path):
    names = [f"trial number {at:02d} of the learning rate" for at in range(30)]
    runs = [write_run(tmp_path / str(at), curve(0.01, 50), meta={"name": name}) for at, name in enumerate(names)]
    for draw in (plots.metric_by_version, plots.metric_by_bytes):
        figure = draw(runs)
        figure.draw_without_rendering()
        axes, one = figure.axes[0], draw(runs[:1])
        one.draw_without_rendering()
        assert axes.get_window_extent().height > 0.75 * one.axes[0].get_window_extent().height
        looks = [(line.get_color(), line.get_marker()) for line in axes.lines]
        assert len(set(looks)) == len(looks) == 30
        assert [text.get_text() for text in figure.legends[0].get_texts()] == names


def test_a_long_name_keeps_both_ends_and_stays_in_the_figure(tmp_path):
    name = "a run of federated averaging over sensors of two kinds that have a rather long name, {}"
    ends = {"a": name.format("one"), "b": name.format("another")}
    runs = [write_run(tmp_path / at, curve(0.01, 50), meta={"name": name}) for at, name in ends.items()]
    figure = plots.metric_by_version(runs)
    figure.draw_without_rendering()
    shown = figure.legends[0].get_texts()
    assert all(text.get_text().startswith("a run of federated averaging") for text in shown)
    assert [text.get_text()[-9:] for text in shown] == ["name, one", ", another"]
    assert all(text.get_window_extent().x1 <= figure.bbox.x1 for text in shown)


def test_what_is_counted_has_ticks_at_whole_numbers(tmp_path):
    """Also where there is little to count: no round is round 0.5, and nobody gave -0.25 answers."""
    for last in (0, 1, 4):
        values = [(v, 0.5 * v, 10 * v, 10 * v, 0.1 * v) for v in range(last + 1)]
        commits = [(1.0, [1], [0])] * last
        about = {"num_clients": 3}
        run = write_run(tmp_path / str(last), values, losses=[1.0], replies=[1, 2], commits=commits, meta=about)
        axes = [plots.metric_by_version([run]).axes[0].xaxis, plots.training_loss([run]).axes[0].xaxis]
        axes += [plots.participation([run]).axes[0].xaxis, plots.participation([run]).axes[0].yaxis]
        axes += [plots.fairness([run]).axes[0].yaxis] if last else []
        for axis in axes:
            assert all(tick == round(tick) for tick in axis.get_majorticklocs())
    assert any(tick != round(tick) for tick in plots.metric_by_version([run]).axes[0].yaxis.get_majorticklocs())


def test_a_name_that_begins_with_an_underscore_has_its_own_colour_in_the_legend(tmp_path):
    names = ("_baseline", "new", "newer")
    runs = [
        write_run(
            tmp_path / name,
            curve(0.01 * at, 50),
            replies=[1, 2, 2][:at],
            commits=[(1.0, [1, 2], [0, at])],
            meta={"name": name},
        )
        for at, name in enumerate(names, 1)
    ]
    for draw in (plots.metric_by_version, plots.participation, plots.staleness):
        legend = draw(runs).legends[0]
        assert [text.get_text() for text in legend.get_texts()] == list(names)
        colours = [
            mpl.colors.to_hex(mpl.artist.getp(h, "color" if "line" in f"{h}".lower() else "edgecolor"))
            for h in legend.legend_handles
        ]
        assert colours == ["#0072b2", "#d55e00", "#009e73"]
