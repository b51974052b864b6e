"""A timeline as SVG: a row per client, bars for what it did, a line per version."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from itertools import pairwise

from partwise.experiment.spans import Span
from partwise.experiment.timeline import Timeline
from partwise.experiment.words import moment_text, time_ticks

__all__ = ["STAGES", "timeline_svg"]

_WIDTH, _LEFT, _RIGHT = 920.0, 128.0, 16.0
_ROW, _BAR, _THIN = 19.0, 11.0, 3.0
_BOTTOM = 34.0
_GAP = 0.75  # a bar is drawn at least so wide
_LINES = 160  # versions drawn across all rows; of more, a tick at the top is all there is room for
_LETTERS = 16  # of a client's name

# What is drawn -> colour on light and on dark paper. The first are those of the report's runs.
_COLOURS = {
    "run-0": ("#0072b2", "#4ba3e3"),
    "run-1": ("#d55e00", "#ff8f45"),
    "run-4": ("#d08f00", "#f2ba3d"),
    "run-5": ("#3d9fd6", "#86ccf5"),
    "ink": ("#1f2328", "#e7eaee"),
    "line": ("#8c959f", "#6e7884"),
    "grid": ("#e3e6ea", "#2b323b"),
    "paper": ("#ffffff", "#181c22"),
}
STAGES = {"download": "run-5", "training": "run-0", "upload": "run-4"}
_LOST = "run-1"
# A mark says in which stage a task was lost: a triangle down on the way to the client, up on the way back.
_MARKS = {
    "download": "M-4-3.5h8L0 4z",
    "train": "M-3.5-3.5L3.5 3.5M3.5-3.5L-3.5 3.5",
    "upload": "M-4 3.5h8L0-4z",
    "deadline": "M0-4.5L4.5 0L0 4.5L-4.5 0z",
    "": "M-3.5-3.5h7v7h-7z",  # any other
}
_WORDS = {
    "download": "lost before it had the model",
    "train": "lost in training",
    "upload": "lost in upload",
    "deadline": "given up",
    "": "lost otherwise",
}

Paint = Callable[[str, str], str]  # (fill or stroke, what) -> attributes


def timeline_svg(timeline: Timeline, *, inline: bool = False) -> str:
    """The picture, readable on light and on dark paper.

    Args:
        timeline: what is shown.
        inline: for a page that defines the colours `--run-0`, `--ink`, ... itself; by default a file of its own.
    """
    paint = _of_page if inline else _of_file
    legend = _Legend(timeline, paint)
    top = legend.height
    height = top + _ROW * len(timeline.lines) + _BOTTOM
    said = escape(f"Timeline of {timeline.label}: a row per client, with its tasks. {timeline.note()}", quote=True)
    parts = [
        "".join(_grid(timeline, paint, top)),
        "".join(_rows(timeline, paint, top)),
        str(legend),
    ]
    if inline:
        head = f'<svg viewBox="0 0 {_WIDTH:g} {height:g}" role="img" aria-label="{said}" font-size="12">'
        return head + "".join(parts) + "</svg>"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {height:g}" width="{_WIDTH:g}" '
        f'height="{height:g}" role="img" aria-label="{said}" font-size="12" '
        'font-family="system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif">'
    )
    paper = f'<rect width="100%" height="100%"{paint("fill", "paper")}/>'
    return f"{head}{_dark()}{paper}{''.join(parts)}</svg>\n"


def _of_page(kind: str, what: str) -> str:
    return f' style="{kind}:var(--{what})"'


def _of_file(kind: str, what: str) -> str:
    """The colour for light paper, which the rules for dark paper override by its class."""
    return f' class="{kind[0]}-{what}" {kind}="{_COLOURS[what][0]}"'


def _dark() -> str:
    rules = "".join(f".f-{what}{{fill:{dark}}}.s-{what}{{stroke:{dark}}}" for what, (_, dark) in _COLOURS.items())
    return f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"


def _scale(timeline: Timeline) -> Callable[[float], float]:
    width = (_WIDTH - _LEFT - _RIGHT) / (timeline.end - timeline.begin)
    return lambda seconds: _LEFT + (min(max(seconds, timeline.begin), timeline.end) - timeline.begin) * width


def _num(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _grid(timeline: Timeline, paint: Paint, top: float) -> Iterator[str]:
    """Axis, names, and the versions."""
    x, bottom = _scale(timeline), top + _ROW * len(timeline.lines)
    ticks = time_ticks(timeline.begin, timeline.end, 8)
    marks = "".join(f"M{_num(x(t))} {_num(top)}V{_num(bottom)}" for t in ticks)
    yield f'<path d="{marks}"{paint("stroke", "grid")} fill="none"/>'
    yield f'<g text-anchor="middle"{paint("fill", "ink")}>'
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 0.0
    for tick in ticks:
        yield f'<text x="{_num(x(tick))}" y="{_num(bottom + 17)}">{moment_text(tick, timeline.end, step)}</text>'
    yield f'</g><g text-anchor="end"{paint("fill", "ink")}>'
    for at, line in enumerate(timeline.lines):
        name = line.name if len(line.name) <= _LETTERS else f"{line.name[: _LETTERS - 1]}…"
        yield f'<text x="{_num(_LEFT - 8)}" y="{_num(top + at * _ROW + _ROW / 2 + 4)}">{escape(name)}</text>'
    yield "</g>"
    rules = "".join(
        f"M{_num(_LEFT)} {_num(top + at * _ROW)}H{_num(_WIDTH - _RIGHT)}" for at in range(len(timeline.lines) + 1)
    )
    yield f'<path d="{rules}"{paint("stroke", "grid")} fill="none" stroke-width=".6"/>'
    to = bottom if len(timeline.commits) <= _LINES else top
    lines = "".join(f"M{_num(x(t))} {_num(top - 7)}V{_num(to)}" for t in _apart(timeline.commits, x))
    if lines:
        yield f'<path d="{lines}"{paint("stroke", "ink")} fill="none" stroke-width=".9" opacity=".55"/>'


def _apart(moments: Sequence[float], x: Callable[[float], float]) -> list[float]:
    """Those that would not be drawn over the one before."""
    kept = list(moments[:1])
    for before, moment in pairwise(moments):
        if x(moment) - x(kept[-1]) >= 1 or x(moment) - x(before) >= 1:
            kept.append(moment)
    return kept


def _rows(timeline: Timeline, paint: Paint, head: float) -> Iterator[str]:
    """One path for all bars of a kind, so that the file stays small; then the marks."""
    x = _scale(timeline)
    paths: dict[str, list[str]] = {what: [] for what in (*STAGES, "lost")}
    marks: dict[str, list[str]] = {}
    for at, line in enumerate(timeline.lines):
        top, thin = head + at * _ROW + (_ROW - _BAR) / 2, head + at * _ROW + (_ROW - _THIN) / 2
        for span in line.spans:
            if span.lost:
                paths["lost"].append(_bar(x, span.began, span.ended, thin, _THIN))
                if timeline.begin <= span.ended <= timeline.end:
                    where = f"translate({_num(x(span.ended))} {_num(thin + _THIN / 2)})"
                    marks.setdefault(_mark(span), []).append(where)
                continue
            for what, (begin, end) in zip(STAGES, span.stages, strict=True):
                if end > begin and end >= timeline.begin and begin <= timeline.end:
                    paths[what].append(_bar(x, begin, end, *_lane(top, what) if line.overlaps else (top, _BAR)))
    for what, bars in paths.items():
        if bars:
            colour = paint("fill", STAGES.get(what, "line"))
            yield f'<path d="{"".join(bars)}"{colour}/>'
    for stage, places in marks.items():
        yield f'<g{paint("stroke", _LOST)} fill="none" stroke-width="1.8">'
        yield from (f'<path d="{_MARKS[stage]}" transform="{where}"/>' for where in places)
        yield "</g>"


def _lane(top: float, what: str) -> tuple[float, float]:
    """Top and height of a bar in a row where transfers run beside training: below it."""
    return (top, 0.6 * _BAR) if what == "training" else (top + 0.65 * _BAR, 0.45 * _BAR)


def _mark(span: Span) -> str:
    return span.lost if span.lost in _MARKS else ""


def _bar(x: Callable[[float], float], begin: float, end: float, top: float, height: float) -> str:
    left = x(begin)
    width = max(_GAP, x(end) - left)
    return f"M{left:.2f} {_num(top)}h{width:.2f}v{_num(height)}h-{width:.2f}z"


class _Legend:
    """What is in the picture, line by line, and what is not."""

    def __init__(self, timeline: Timeline, paint: Paint) -> None:
        self._paint, self._parts = paint, list[str]()
        self._x, self._y = _LEFT, 20.0
        for what, colour in STAGES.items():
            self._item(f'<path d="M0-9h12v9H0z"{paint("fill", colour)}/>', what)
        if timeline.commits:
            self._item(f'<path d="M6-11v14"{paint("stroke", "ink")} stroke-width="1.2" opacity=".7"/>', "a version")
        lost = dict.fromkeys(_mark(span) for line in timeline.lines for span in line.spans if span.lost)
        note = timeline.note()
        self._next_line(bool(lost or note))
        for stage in sorted(lost, key=list(_MARKS).index):
            mark = f'<path d="{_MARKS[stage]}" transform="translate(6 -4)" fill="none" stroke-width="1.8"'
            self._item(f"{mark}{paint('stroke', _LOST)}/>", _WORDS[stage])
        self._next_line(bool(lost and note))
        if note:
            self._text(f'x="{_num(_LEFT)}" opacity=".75"', note)
        self.height = self._y + 20

    def __str__(self) -> str:
        return "".join(self._parts)

    def _next_line(self, is_used: bool) -> None:
        if is_used:
            self._x, self._y = _LEFT, self._y + 19

    def _text(self, where: str, words: str) -> None:
        self._parts.append(f'<text {where} y="{_num(self._y)}"{self._paint("fill", "ink")}>{escape(words)}</text>')

    def _item(self, drawing: str, words: str) -> None:
        self._parts.append(f'<g transform="translate({_num(self._x)} {_num(self._y)})">{drawing}</g>')
        self._text(f'x="{_num(self._x + 17)}"', words)
        self._x += 36 + 6.6 * len(words)
