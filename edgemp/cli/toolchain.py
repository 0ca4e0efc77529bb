"""`edgemp toolchain`: builds, shows and removes the environments of vendor toolchains."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgemp.sizes import size

_NAME = typer.Argument(help="A toolchain that an installed plugin declares.")
_JSON = typer.Option("--json", help="One JSON document on stdout.")


def register(app: typer.Typer) -> None:
    toolchain = typer.Typer(
        help="Build, show or remove the environments of vendor toolchains.", no_args_is_help=True
    )
    toolchain.command("install")(install)
    toolchain.command("list")(show)
    toolchain.command("remove")(remove)
    app.add_typer(toolchain, name="toolchain")


def install(
    name: Annotated[str, _NAME],
    python: Annotated[str, typer.Option(help="Interpreter to build it with.")] = "",
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Build a toolchain's own environment, with every package pinned; may download much."""
    from edgemp.cli.output import console, print_json
    from edgemp.toolchains import environment, load_toolchain

    declared = load_toolchain(name)
    done = environment.install(
        declared, python=python, progress=lambda step: console().print(f"{name}: {step} …")
    )
    if json:
        print_json(_state(name))
    else:
        console().print(
            f"{name}: {declared.package} {done.version} in {done.folder}, {size(done.size_bytes)}"
        )


def show(json: Annotated[bool, _JSON] = False) -> None:
    """List the toolchains that plugins declare, and which are installed."""
    from edgemp.cli.output import print_json, print_table
    from edgemp.toolchains import toolchain_names

    states = [_state(name) for name in toolchain_names()]
    if json:
        print_json({state["name"]: state for state in states})
        return
    print_table(
        "toolchains",
        ["toolchain", "state", "version", "python", "description"],
        [
            [s["name"], s["state"], s["version"], s["python"], s["description"] or s["problem"]]
            for s in states
        ],
    )


def remove(name: Annotated[str, _NAME], json: Annotated[bool, _JSON] = False) -> None:
    """Remove a toolchain's environments."""
    from edgemp.cli.output import console, print_json
    from edgemp.toolchains import environment, load_toolchain

    freed = environment.remove(load_toolchain(name))
    if json:
        print_json({"name": name, "freed_bytes": freed})
    else:
        console().print(f"{name}: freed {size(freed)}")


def _state(name: str) -> dict[str, Any]:
    from edgemp.toolchains import ToolchainError, environment, load_toolchain

    state: dict[str, Any] = {
        "name": name,
        "state": "not installed",
        "version": "",
        "python": "",
        "folder": "",
        "packages": {},
        "description": "",
        "problem": "",
    }
    try:
        declared = load_toolchain(name)
    except ToolchainError as error:  # one broken plugin must not hide the others
        return {**state, "state": "broken", "problem": str(error)}
    state["description"] = declared.description
    found = environment.find(declared)
    if found is None:
        return state
    return {
        **state,
        "state": "installed",
        "version": found.version,
        "python": found.python_version,
        "folder": str(found.folder),
        "packages": found.packages,
    }
