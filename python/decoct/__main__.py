"""The command line: `decoct` or `python -m decoct`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from .cli import condense, evaluate, info


class _Parser(argparse.ArgumentParser):
    """Errors of usage in one line, as all other errors are reported."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (it failed), 2 (bad input) or 130 (interrupted).

    The environment variable DECOCT_TRACEBACK=1 lets errors through, for reports of bugs.
    """
    parser = _Parser(
        prog="decoct", description="Condense data sets: few synthetic rows that train like many real ones."
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (condense, evaluate, info):
        module.register(subparsers)
    arguments = parser.parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("DECOCT_TRACEBACK") == "1":
            raise
        message = (
            str(error) if not isinstance(error, OSError) or error.strerror is None else _os_message(error)
        )
        print(f"decoct: error: {' '.join(message.split())}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"decoct: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"decoct: interrupted{f'; {stop}' if str(stop) else ''}", file=sys.stderr)
        return 130
    return code


def _os_message(error: OSError) -> str:
    where = f": {error.filename}" if error.filename is not None else ""
    return f"{error.strerror}{where}"


if __name__ == "__main__":
    sys.exit(main())
