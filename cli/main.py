"""The command line: results on stdout, progress and errors on stderr, exit 2 for bad use."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from ..ir.errors import ArgumentError, BackpassError, DumpError
from . import bench, diff, doctor, dump, plan

COMMANDS = (dump, diff, plan, bench, doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    options.program = argv is None  # and may start again
    try:
        status = int(options.run(options))
        print(end="", flush=True)
        return status
    except BackpassError as error:
        print(f"backpass: {error}", file=sys.stderr)
        return 2 if isinstance(error, ArgumentError | DumpError) else int(options.trouble)
    except BrokenPipeError:  # whoever reads has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(options.trouble)
    except KeyboardInterrupt:
        print("backpass: interrupted", file=sys.stderr)
        return 130  # as shells have it
    except (Exception, SystemExit):
        traceback.print_exc()
        print(
            "backpass: stopped by what the program raised, above\n  where no line of the program "
            "stands there, it is a bug in backpass: please report it",
            file=sys.stderr,
        )
        return int(options.trouble)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("backpass", description="A static-graph autodiff compiler.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
