"""Entry point of `edgemp`: collects the commands, turns errors into messages and exit codes."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback

from edgemp.errors import EdgempError

COMMANDS = (
    "compile",
    "run",
    "bench",
    "verify",
    "sign",
    "inspect",
    "targets",
    "doctor",
    "schema",
    "cache",
)
INTERRUPTED = 130


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
        sys.path.insert(0, os.path.abspath(app_dir))

    for name in COMMANDS:
        importlib.import_module(f"edgemp.cli.{name}").register(app)
    sys.exit(_guarded(app))


def _guarded(app: object) -> int:
    try:
        app()  # type: ignore[operator]
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer turns Ctrl-C into this
            _report("Interrupted", "interrupted; nothing half-written was left behind")
        return ended.code if isinstance(ended.code, int) else 2
    except EdgempError as error:
        _report(type(error).__name__, str(error))
        return error.exit_code
    except Exception as error:
        # A bug of ours must not exit with 1, which means that a bound does not hold.
        traceback.print_exc()
        _report(type(error).__name__, f"internal error: {error}")
        return 2
    return 0


def _report(kind: str, message: str) -> None:
    print(f"edgemp: {message}", file=sys.stderr)
    if "--json" in sys.argv:
        print(json.dumps({"error": {"kind": kind, "message": message}}, indent=1))


if __name__ == "__main__":
    main()
