"""The command line. Nothing heavy is imported before a command needs it: `partwise --help` answers at once."""

from __future__ import annotations

import partwise.cli.commands as _commands  # noqa: F401 - importing it gives the application its commands
from partwise.cli.app import app, main

__all__ = ["app", "main"]
