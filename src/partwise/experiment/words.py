"""Numbers as people read them. Standard library only."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

__all__ = [
    "NOTHING",
    "amount",
    "bytes_text",
    "count_text",
    "finite",
    "moment_text",
    "number",
    "one_line",
    "percent",
    "printable",
    "ratio_of_bytes",
    "seconds_text",
    "split_scope",
    "thin_scope",
    "time_left",
    "time_ticks",
    "title_of",
]

_TITLES = {
    "auc": "AUC",
    "accuracy": "Accuracy",
    "loss": "Loss",
    "perplexity": "Perplexity",
    "train_loss": "Training loss",
}
NOTHING = "–"


def title_of(metric: str) -> str:
    """A metric's name as a heading has it.

    Example:
        >>> title_of("auc"), title_of("top5"), title_of("my_score")
        ('AUC', 'Top 5 accuracy', 'my score')
    """
    if metric.startswith("top") and metric[3:].isdigit():
        return f"Top {metric[3:]} accuracy"
    return _TITLES.get(metric, metric.replace("_", " "))


def number(value: float | None, digits: int = 3) -> str:
    """A score, with as many decimals as mean something.

    Example:
        >>> number(0.71449), number(1234.5), number(float("nan")), number(0.00012345)
        ('0.714', '1,234', '–', '0.000123')
    """
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 1e6 or 0 < size < 10 ** -(digits + 3):
        text = f"{value:.2e}"
    elif size >= 1000:
        text = f"{value:,.0f}"
    elif size >= 10:
        text = f"{value:.1f}"
    elif 0 < size < 10 ** -(digits - 1):
        text = f"{value:.{digits}g}"
    else:
        text = f"{value:.{digits}f}"
    return text.replace("-", "−", 1) if value < 0 else text


def count_text(value: float | None) -> str:
    """A count with thousands apart."""
    return NOTHING if value is None else f"{value:,.0f}"


def amount(count: int, noun: str) -> str:
    """A count with its noun.

    Example:
        >>> amount(1, "round"), amount(1234, "round")
        ('1 round', '1,234 rounds')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def bytes_text(value: float | None) -> str:
    """Bytes in powers of a thousand.

    Example:
        >>> bytes_text(950), bytes_text(12_345_678), bytes_text(1e9)
        ('950 B', '12.3 MB', '1.00 GB')
    """
    if value is None:
        return NOTHING
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} B" if unit == "B" else f"{_three(value)} {unit}"


def seconds_text(value: float | None) -> str:
    """A duration in the unit that suits it.

    Example:
        >>> seconds_text(0.25), seconds_text(75), seconds_text(10_000), seconds_text(200_000)
        ('0.25 s', '75.0 s', '2.78 h', '2.31 days')
    """
    if value is None or math.isnan(value):
        return NOTHING
    for size, unit in _UNITS:
        if value >= size:
            return f"{_three(value / _SECONDS[unit])} {unit}"
    return f"{_three(value)} s" if value else "0 s"


def thin_scope(scope: str, ratio: float) -> str:
    """The scope of the same score of a thinner model.

    Example:
        >>> thin_scope("central", 0.25)
        'central@0.25'
    """
    return f"{scope}@{ratio:g}"


def split_scope(scope: str) -> tuple[str, float]:
    """Where a score is measured, and the width ratio of the model that it is of.

    Example:
        >>> split_scope("central@0.25"), split_scope("pooled")
        (('central', 0.25), ('pooled', 1.0))
    """
    where, _, ratio = scope.partition("@")
    return where, float(ratio or 1)


def time_left(each: float, count: int) -> float:
    """The seconds that so many more will take; nan where they are more than a float can say.

    Example:
        >>> time_left(0.5, 6), time_left(0.5, 10**400)
        (3.0, nan)
    """
    try:
        return each * count
    except OverflowError:
        return math.nan


_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)


def time_ticks(begin: float, end: float, count: int) -> list[float]:
    """Moments from `begin` to `end`, in seconds, at round values: about `count` of them, or none where no time passes.

    Example:
        >>> time_ticks(0, 7, 4), time_ticks(50, 200, 3), time_ticks(0, 0.05, 3)
        ([0.0, 2.0, 4.0, 6.0], [60.0, 120.0, 180.0], [0.0, 0.02, 0.04])
    """
    if not end > begin:
        return []
    least = (end - begin) / max(1, count)
    size = 10 ** math.floor(math.log10(least))
    fine = [m * size for m in (1, 2, 5, 10)]
    days = [86_400 * m * 10 ** max(0, math.floor(math.log10(least / 86_400))) for m in (1, 2, 5, 10)]
    steps = fine if least <= 0.5 else _STEPS if least <= _STEPS[-1] else days
    step = next(s for s in steps if s >= least * 0.999)
    first, last = math.ceil(begin / step - 1e-9), math.floor(end / step + 1e-9)
    return [round(float(at * step), 9) for at in range(first, last + 1)]


def moment_text(value: float, end: float, step: float = 0.0) -> str:
    """A moment on an axis that ends at `end`, in the unit that suits the axis.

    Args:
        value: seconds.
        end: seconds.
        step: seconds to the next moment, which is to be told from this one.

    Example:
        >>> moment_text(90, 100), moment_text(90, 600), moment_text(0, 600), moment_text(43_200, 400_000)
        ('90 s', '1.5 min', '0', '0.5 days')
        >>> moment_text(1e6, 1e6), moment_text(1e6 + 1, 1e6), moment_text(1e6 + 1, 1e6, step=1)
        ('11.5741 days', '11.5741 days', '11.574086 days')
    """
    size, unit = next(((_SECONDS[unit], unit) for size, unit in _UNITS if end >= size), (1, "s"))
    digits = min(15, max(6, math.floor(math.log10(value / step)) + 2)) if value > step > 0 else 6
    return f"{value / size:.{digits}g} {unit}" if value else "0"


_SECONDS = {"days": 86_400, "h": 3600, "min": 60}
_UNITS = ((172_800, "days"), (7200, "h"), (120, "min"))  # from so many seconds on


def percent(share: float | None) -> str:
    """A share in percent, to two digits.

    Example:
        >>> percent(0.0123), percent(1.0), percent(0.0)
        ('1.2 %', '100 %', '0 %')
    """
    if share is None or math.isnan(share):
        return NOTHING
    value = 100 * share
    if value and abs(value) < 0.095:
        return f"{value:.1g} %"
    return f"{value:.1f} %" if value and abs(value) < 9.95 else f"{value:.0f} %"


def ratio_of_bytes(bytes_: float, other: float) -> str:
    """How one amount of traffic relates to another, as the end of a sentence.

    Example:
        >>> ratio_of_bytes(1e6, 40e6)
        '1/40 of the bytes'
        >>> ratio_of_bytes(60, 100), ratio_of_bytes(101, 100), ratio_of_bytes(130, 100)
        ('60 % of the bytes', 'about as many bytes', '1.3 times the bytes')
    """
    ratio = bytes_ / other
    if ratio <= 0.2:
        return f"1/{round(1 / ratio):,} of the bytes" if ratio else "none of the bytes"
    if ratio < 0.95:
        return f"{round(100 * ratio)} % of the bytes"
    return "about as many bytes" if ratio <= 1.05 else f"{_two(ratio)} times the bytes"


def _two(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def _three(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def printable(text: str, limit: int = 500) -> str:
    r"""What somebody else wrote, as it may be shown: no control or direction characters, and not too long.

    Example:
        >>> printable("no\x1b[2J memory"), printable("abcdef", 4)
        ('no�[2J memory', 'abc…')
    """
    shown = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return "".join("�" if unicodedata.category(c)[0] == "C" and c not in "\n\t" else c for c in shown)


def one_line(text: str, limit: int = 200) -> str:
    r"""A name that somebody else gave, as it may be shown: printable, in one line, and not too long.

    Example:
        >>> one_line("ann\n\x1b[2Jbob "), one_line("abcdef", 4)
        ('ann �[2Jbob', 'abc…')
    """
    return printable(" ".join(text.split()), limit)


def finite(value: Any) -> Any:
    """The same without what JSON has no word for: numbers that are not finite become None."""
    match value:
        case dict():
            return {key: finite(v) for key, v in value.items()}
        case list() | tuple():
            return [finite(v) for v in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value
