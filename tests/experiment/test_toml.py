from __future__ import annotations

import math

import pytest

from partwise.experiment.toml import decode_error, locate, parse, write

TRICKY = '''# a comment with [brackets] = and "quotes"
name = "demo # not a comment"
"a b".c = 1

[workload]   # a header may be followed by one
text = """
[not a header]
x = 1 \\"""
""""
raw = \'\'\'c:\\\'\'\'
arr = [ 1, # one
  2,
  { q = 3, r.s = [
   4] },
]
[[client]]
name="Clip"
[[client]]
name = 'c\\'
[[client.control]]
x=1
[client.control.deep]
when=1979-05-27T07:32:00Z
[ algorithm . local ]
optimizer = { name = "SGD", lr = 1.0 }
'''


def paths(value, path=()):
    """Every key path of a parsed table."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*path, key))


def test_every_key_has_a_line():
    assert set(locate(TRICKY)) == set(paths(parse(TRICKY)))


def test_lines_are_those_of_the_text():
    lines = TRICKY.split("\n")
    found = locate(TRICKY)
    starts = {
        ("a b", "c"): '"a b".c',
        ("workload",): "[workload]",
        ("workload", "raw"): "raw =",
        ("workload", "arr", 1): "  2,",
        ("workload", "arr", 2, "q"): "  { q",
        ("workload", "arr", 2, "r", "s", 0): "   4]",
        ("client",): "[[client]]",
        ("client", 1, "name"): "name = 'c",
        ("client", 1, "control", 0): "[[client.control]]",
        ("client", 1, "control", 0, "deep", "when"): "when=",
        ("algorithm", "local", "optimizer", "lr"): "optimizer =",
    }
    assert {path: lines[found[path] - 1].startswith(start) for path, start in starts.items()} == dict.fromkeys(
        starts, True
    )
    assert found["client", 0] + 2 == found["client", 1]


def test_lines_with_carriage_returns_and_none_at_all():
    assert locate("a = 1\r\n\r\n[b]\r\nc = 2\r\n") == {("a",): 1, ("b",): 3, ("b", "c"): 4}
    assert locate("") == {}


@pytest.mark.parametrize(
    ("text", "line"), [("a = 1\nb = \n", 2), ("a = 1\na = 2\n", 2), ('x = 1\ny = "unclosed', 2), ("[t]\n[t]\n", 2)]
)
def test_syntax_error_has_its_line(text, line):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the library's own message
        parse(text)
    found, complaint = decode_error(caught.value, text)
    assert found == line
    assert complaint
    assert "line" not in complaint


def test_what_is_written_is_read_back():
    table = {
        "flag": True,
        "count": -3,
        "small": 1e-07,
        "large": 1e22,
        "endless": [math.inf, -math.inf],
        "text": 'quote " backslash \\ line\nend é \x7f \t',
        "empty": [],
        "nested": [[{}], [1]],
        "quoted key": {"with.dot": {"inner": 1}, "plain": "x"},
        "none": {},
        "chain": [{"name": "a", "deep": {"x": 1}}, {"name": "b", "list": [{"y": 2}, {"z": 3}]}],
    }
    assert parse(write(table)) == table
    assert math.isnan(parse(write({"x": math.nan}))["x"])


def test_what_is_written_is_complete_toml_without_blanks_at_the_ends():
    text = write({"b": 1, "a": {"x": 2.5}})
    assert text == "b = 1\n\n[a]\nx = 2.5\n"


def test_nothing_is_written_for_what_toml_has_no_word_for():
    with pytest.raises(TypeError, match=r"write\(\): TOML has strings, numbers, .* got None\. Leave it out\."):
        write({"x": None})
