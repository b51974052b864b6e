from __future__ import annotations

from importlib import metadata

from partwise.cli.doctor import findings
from toy_cli import call


def test_doctor(monkeypatch):
    found = {f.what: f for f in findings()}
    assert found["Python"].state == found["this folder"].state == "ok"
    assert found["threads"].said.startswith("torch would use ")
    out, _ = call("doctor")
    assert "partwise" in out


def test_doctor_says_which_extra_brings_what(monkeypatch):
    lines = [
        "torch>=2.4",
        "zebra>=1",
        "pandas>=2 ; extra == 'tables'",
        "lion>=1; extra == 'tables'",
        'tomli; python_version < "3.11"',
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: lines)

    def version(name):
        if name in {"zebra", "lion"}:
            raise metadata.PackageNotFoundError(name)
        return "1.5"

    monkeypatch.setattr(metadata, "version", version)
    found = {f.what: (f.state, f.said) for f in findings()}
    assert found["torch"] == ("ok", "1.5")
    assert found["zebra"] == ("wrong", "pip install zebra")
    assert found["extra tables"] == ("missing", "lion: pip install 'partwise[tables]'")
    assert "tomli" not in found
    call("doctor", code=1)
