"""All commands, in the order in which the help lists them."""

from __future__ import annotations

from partwise.cli.app import app
from partwise.cli.attack import attack_command
from partwise.cli.compare import compare_command
from partwise.cli.demo import demo_command
from partwise.cli.deploy import deploy
from partwise.cli.doctor import doctor_command
from partwise.cli.journal import journal_command
from partwise.cli.look import list_command, parts_command, report_command, show_command
from partwise.cli.node import node
from partwise.cli.page import page_command
from partwise.cli.populations import data
from partwise.cli.rehearse import rehearse_command
from partwise.cli.replay import replay_command
from partwise.cli.run import resume_command, run_command
from partwise.cli.status import status_command
from partwise.cli.timeline import timeline_command
from partwise.cli.union import union_command

__all__: list[str] = []

app.command("demo")(demo_command)
app.command("run")(run_command)
app.command("resume")(resume_command)
app.command("rehearse")(rehearse_command)
app.command("attack")(attack_command)
app.command("list")(list_command)
app.command("show")(show_command)
app.command("status")(status_command)
app.command("page")(page_command)
app.command("compare")(compare_command)
app.command("report")(report_command)
app.command("timeline")(timeline_command)
app.command("replay")(replay_command)
app.command("journal")(journal_command)
app.command("union")(union_command)
app.command("parts")(parts_command)
app.add_typer(data, name="data")
app.add_typer(deploy, name="deploy")
app.add_typer(node, name="node")
app.command("doctor")(doctor_command)
