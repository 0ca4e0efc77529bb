"""Entry point of `edgemp`: collects the commands, turns errors into messages and exit codes."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback

from edgemp.cli.output import hush, print_json, say
from edgemp.errors import EdgempError, OutputError

COMMANDS = (
    "compile",
    "compress",
    "estimate",
    "tune",
    "finish",
    "run",
    "bench",
    "verify",
    "sign",
    "inspect",
    "targets",
    "toolchain",
    "doctor",
    "schema",
    "cache",
)
INTERRUPTED = 130
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def main() -> None:
    """Run the command line and exit: 0 holds, 1 a bound does not hold, 2 the call or environment is wrong."""
    try:
        import typer
    except ImportError:
        print("edgemp: the command line needs typer: pip install 'edgemp[cli]'", file=sys.stderr)
        sys.exit(2)
    app = typer.Typer(
        help="Compile multimodal models for edge devices, and run them there behind gates.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback(invoke_without_command=True)
    def common(
        app_dir: str = typer.Option(
            ".", "--app-dir", help="Folder from which functions and factories are imported."
        ),
        version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    ) -> None:
        if version:
            from edgemp import __version__

            print(__version__)
            raise typer.Exit
        if not os.path.isdir(app_dir):
            raise EdgempError(f"--app-dir: there is no folder {app_dir}")
        # At the end: a file there that is called like a package must not take the package's place.
        sys.path.append(os.path.abspath(app_dir))

    for name in COMMANDS:
        importlib.import_module(f"edgemp.cli.{name}").register(app)
    code = _guarded(app)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        hush(sys.stdout)
    except OSError as error:
        code = _full(error)
    sys.exit(code)


def _guarded(app: object) -> int:
    try:
        app()  # type: ignore[operator]
    except SystemExit as ended:
        cause = ended.__context__
        if isinstance(cause, BrokenPipeError):  # the reader of a help text has left
            hush(sys.stdout)
            return 0
        if ended.code == INTERRUPTED:  # typer turns Ctrl-C into this
            _report("Interrupted", "interrupted; nothing half-written was left behind")
        elif (told := getattr(cause, "format_message", None)) is not None:
            _report_json("UsageError", told())  # typer has told people
        return ended.code if isinstance(ended.code, int) else 2
    except EdgempError as error:
        _report(type(error).__name__, str(error))
        return error.exit_code
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            return _full(error)
        # A bug of ours must not exit with 1, which means that a bound does not hold.
        traceback.print_exc()
        _report(type(error).__name__, f"internal error: {error}")
        return 2
    return 0


def _full(error: OSError) -> int:
    """Output is lost: what stdout still holds would fail once more, and has nowhere to go."""
    hush(sys.stdout)
    where = f" {error.filename}" if error.filename else " the output"
    _report(
        OutputError.__name__,
        f"cannot write{where}: {error.strerror}; free some space or write elsewhere",
    )
    return 2


def _report(kind: str, message: str) -> None:
    say(f"edgemp: {message}", sys.stderr)
    _report_json(kind, message)


def _report_json(kind: str, message: str) -> None:
    if "--json" in sys.argv:
        try:
            print_json({"error": {"kind": kind, "message": message}})
        except OSError:  # a full disk; people were told
            hush(sys.stdout)


if __name__ == "__main__":
    main()
