from __future__ import annotations

import json
import re

from toy_cli import call


def test_data_show(here):
    out, _ = call("data", "show", "tiny.toml", "workload.num_clients=9", "--out", "picture.png")
    lines = out.splitlines()
    assert lines[0].startswith("LeafSynthetic(")
    assert lines[1] == "9 clients"
    assert re.fullmatch(r"[\d,]+ examples; per client min \d+, p10 .*", lines[2])
    assert lines[-1] == "The picture is in picture.png"
    assert (here / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(call("data", "show", "tiny.toml", "--json")[0])["clients"] == 7
