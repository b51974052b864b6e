from __future__ import annotations

import io

import pytest
from rich import console as rich_console

from partwise.cli import tables
from partwise.cli.tables import plain_table, print_all

NUMBERS = ["0.1708", "0.2573", "120", "42.3 kB", "5.82 s", "169 kB", "111 %", "0.000", "0.250", "1.12 s"]


@pytest.mark.parametrize("wide", [40, 80, 200])
def test_a_narrow_terminal_breaks_names_and_no_numbers(monkeypatch, wide):
    """Numbers take 55 letters as they are, 43 broken at their spaces, and 20 go between the columns."""
    out, made = io.StringIO(), rich_console.Console
    monkeypatch.setattr(
        rich_console,
        "Console",
        lambda **how: made(file=out, force_terminal=True, color_system=None, **{"width": wide, **how}),
    )
    table = plain_table("run", *(f"a head of {at}" for at in range(10)), numbers=10)
    table.add_row("a trial of the learning rate", *NUMBERS)
    print_all(table)
    lines = out.getvalue().splitlines()
    words = {word for line in lines for word in line.split()}
    assert words >= {word for number in NUMBERS for word in number.split()}
    assert max(map(len, map(str.rstrip, lines))) <= max(wide, 8 + 43 + 20)


def test_a_table_that_fits_is_left_as_it_is(monkeypatch, capsys):
    table = plain_table("run", "final", numbers=1)
    table.add_row("one", "0.1708")
    assert tables._fit_(table, 40) == 40
    print_all(table)
    assert capsys.readouterr().out == "run   final\none  0.1708\n"
