"""`python -m partwise` is `partwise`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """The command line from its first moment to its last, in which a Ctrl-C is no command's to catch."""
    try:
        import signal

        from partwise.cli import main as run

        try:
            run()
        finally:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is said and saved: another one only ends the process
    except KeyboardInterrupt:
        sys.stderr.write("partwise: interrupted before there was anything to save.\n")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
