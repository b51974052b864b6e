from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from partwise import __version__
from partwise.cli import app
from toy_cli import call

ROOT = Path(__file__).resolve().parents[2]


def python(*args):
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100"}
    return subprocess.run([sys.executable, *args], env=env, capture_output=True, text=True, timeout=300, check=False)


def test_help_tells_of_every_command_and_exit_code():
    ran = python("-m", "partwise", "--help")
    assert ran.returncode == 0
    commands = re.findall(r"^  (\w+) ", ran.stdout, re.MULTILINE)
    assert set(commands) >= {"run", "resume", "list", "show", "compare", "report", "parts", "data", "demo", "doctor"}
    said = " ".join(ran.stdout.split())
    for code in ("0 done", "1 the run failed", "2 the specification", "3 nothing to resume", "130 interrupted"):
        assert code in said
    assert "..." not in ran.stdout.replace("[ARGS]...", "")  # no description is cut off


def test_help_of_every_command_needs_nothing_heavy():
    code = """
import sys
from typer.testing import CliRunner
from partwise.cli import app
for command in ("run", "resume", "list", "show", "compare", "report", "parts", "data", "demo", "doctor"):
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
print(sorted({"torch", "numpy", "matplotlib", "pandas", "jinja2"} & set(sys.modules)))
"""
    ran = python("-c", code)
    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr


def test_version():
    assert call("--version")[0] == f"partwise {__version__}\n"


def test_no_command_is_help():
    assert "Usage: partwise" in CliRunner().invoke(app, []).output


def test_the_command_is_installed():
    found = set(metadata.entry_points(group="console_scripts", name="partwise"))
    if not found:
        pytest.skip("Partwise is not installed here, only found")
    assert {entry.value for entry in found} == {"partwise.__main__:main"}


# Somebody presses Ctrl-C while the command line is imported.
FIRST = """
import runpy, sys
class Pressed:
    def find_spec(self, name, *_):
        if name == "partwise.cli.app":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Pressed())
sys.argv = ["partwise", "--version"]
runpy.run_module("partwise", run_name="__main__")
"""
# Somebody does while the process ends.
LAST = """
import atexit, os, runpy, signal, sys
atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv = ["partwise", "--version"]
runpy.run_module("partwise", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [(FIRST, 130, "partwise: interrupted before there was anything to save.\n"), (LAST, -2, "")],
    ids=["first", "last"],
)
def test_ctrl_c_in_the_first_and_the_last_moment(script, code, said):
    ran = python("-c", script)
    assert (ran.returncode, ran.stderr) == (code, said)


def test_debug_shows_the_traceback(here):
    result = CliRunner().invoke(app, ["run", "tiny.toml", "scheduler.cohort=99", "--debug"])
    assert isinstance(result.exception, ValueError)
    result = CliRunner().invoke(app, ["run", "tiny.toml", "--debug", "algorithm.local.optimizer.lr=1e30"])
    assert "DivergedError" in type(result.exception.__cause__).__name__


def test_a_run_that_nobody_can_read_is_a_run(here):
    """Of a process that was begun without an output or an error stream."""
    command = [
        sys.executable,
        "-c",
        "import os; os.close(1); os.close(2); os.execv(os.sys.executable, os.sys.argv[1:])",
    ]
    command += [sys.executable, "-m", "partwise", "run", "tiny.toml", "scheduler.rounds=1", "--folder", "ran"]
    assert (
        subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False).returncode
        == 0
    )
    assert (here / "ran" / "model.safetensors").is_file()
