"""A timeline in letters, for a terminal."""

from __future__ import annotations

from partwise.experiment.timeline import Line, Timeline
from partwise.experiment.words import moment_text, time_ticks

__all__ = ["timeline_text"]

_DOWNLOAD, _TRAIN, _UPLOAD, _LOST, _GONE, _IDLE = "░", "█", "▒", "-", "×", "·"
_NEXT_TO_NOTHING = 0.02  # of a letter
_LEGEND = f"{_DOWNLOAD} download  {_TRAIN} training  {_UPLOAD} upload  {_IDLE} idle"


def timeline_text(timeline: Timeline, width: int = 100) -> str:
    """The picture in lines of at most so many letters.

    A letter stands for what the client did longest in the time that it covers, and for idling only where it did next to
    nothing, so that short tasks are seen. A version is a `│` in the first line, or the number of them that fall
    together, `+` for more than nine. A client whose transfers ran beside its training has a line for them below.

    Args:
        timeline: what is shown.
        width: of a line, in letters; 40 at least are used.
    """
    longest = min(16, max([len("versions"), *(len(line.name) for line in timeline.lines)]))
    columns = max(40, width) - longest - 2
    lines = [_padded("versions", longest) + _versions(timeline, columns)]
    for line in timeline.lines:
        if line.overlaps:
            lines.append(_padded(line.name, longest) + _row(timeline, line, columns, f"{_TRAIN}{_LOST}"))
            lines.append(_padded("", longest) + _row(timeline, line, columns, f"{_DOWNLOAD}{_UPLOAD}"))
        else:
            lines.append(_padded(line.name, longest) + _row(timeline, line, columns))
    lines.append(" " * (longest + 2) + _axis(timeline, columns))
    is_lost = any(span.lost for line in timeline.lines for span in line.spans)
    lines.append(f"{_LEGEND}  {_LOST}{_GONE} lost" if is_lost else _LEGEND)
    note = timeline.note()
    return "\n".join([line.rstrip() for line in lines] + ([note] if note else []))


def _padded(name: str, longest: int) -> str:
    return f"{name if len(name) <= longest else name[: longest - 1] + '…':<{longest}}  "


def _at(timeline: Timeline, seconds: float, columns: int) -> float:
    """A moment, in columns."""
    return (seconds - timeline.begin) / (timeline.end - timeline.begin) * columns


def _versions(timeline: Timeline, columns: int) -> str:
    counts = [0] * columns
    for moment in timeline.commits:
        counts[min(columns - 1, int(_at(timeline, moment, columns)))] += 1
    return "".join(" " if not n else "│" if n == 1 else str(n) if n < 10 else "+" for n in counts)


def _row(timeline: Timeline, line: Line, columns: int, shown: str = f"{_DOWNLOAD}{_TRAIN}{_UPLOAD}{_LOST}") -> str:
    """What there is most of in each column, of what is shown; a loss in any case."""
    filled: list[dict[str, float]] = [{} for _ in range(columns)]
    gone: list[int] = []
    for span in line.spans:
        parts = [(_LOST, (span.began, span.ended))] if span.lost else list(zip("░█▒", span.stages, strict=True))
        for letter, (begin, end) in parts:
            if letter in shown:
                _fill(filled, letter, *(_at(timeline, moment, columns) for moment in (begin, end)))
        if span.lost and _LOST in shown and timeline.begin <= span.ended <= timeline.end:
            gone.append(min(columns - 1, int(_at(timeline, span.ended, columns))))
    letters = [_most(cell) for cell in filled]
    for at in gone:
        letters[at] = _GONE
    return "".join(letters)


def _fill(filled: list[dict[str, float]], letter: str, begin: float, end: float) -> None:
    for at in range(max(0, int(begin)), min(len(filled), int(end) + 1)):
        share = min(end, at + 1) - max(begin, at)
        if share > 0:
            filled[at][letter] = filled[at].get(letter, 0.0) + share


def _most(cell: dict[str, float]) -> str:
    letter, share = max(cell.items(), key=lambda item: item[1], default=(_IDLE, 0.0))
    return letter if share > _NEXT_TO_NOTHING else _IDLE


def _axis(timeline: Timeline, columns: int) -> str:
    """Moments, each beginning where it is."""
    line = [" "] * (columns + 12)
    free = 0
    ticks = time_ticks(timeline.begin, timeline.end, max(2, columns // 10))
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 0.0
    for tick in ticks:
        at, text = int(_at(timeline, tick, columns)), f"╵{moment_text(tick, timeline.end, step)}"
        if at >= free and at + len(text) <= len(line):
            line[at : at + len(text)] = text
            free = at + len(text) + 1
    return "".join(line)
