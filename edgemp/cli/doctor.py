"""`edgemp doctor`: what of edgemp works on this machine, and what to install for the rest."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Probe the machine, every backend and the compile-side packages. Exit code 2 if no backend works."""
    import importlib.util
    import sys
    from dataclasses import asdict

    from edgemp import __version__
    from edgemp.backends import backend_names, load_backend
    from edgemp.cli.output import console, print_json, print_table
    from edgemp.compiler.cache import default_root
    from edgemp.machine import this_machine
    from edgemp.runtime.gates import gate_kinds

    machine = this_machine()
    backends = {}
    for name in backend_names():
        try:
            backends[name] = asdict(load_backend(name).probe())
        except (Exception, SystemExit) as error:  # one broken plugin must not hide the others
            backends[name] = {
                "available": False,
                "engine": name,
                "version": "",
                "problem": str(error),
            }
    packages = {
        name: importlib.util.find_spec(name) is not None
        for name in ("torch", "onnx", "onnxscript", "nncf", "joblib", "cryptography")
    }
    compiles = all(packages[name] for name in ("torch", "onnx", "onnxscript", "nncf", "joblib"))
    if json:
        print_json(
            {
                "edgemp": __version__,
                "python": sys.version.split()[0],
                "machine": {**asdict(machine), "isa": sorted(machine.isa)},
                "backends": backends,
                "gates": gate_kinds(),
                "packages": packages,
                "can_compile": compiles,
                "cache": str(default_root()),
            }
        )
    else:
        memory = f"{machine.memory_bytes / 2**30:.0f} GiB" if machine.memory_bytes else "unknown"
        console().print(
            f"edgemp {__version__}, Python {sys.version.split()[0]}; {machine.cpu}, {machine.arch}, "
            f"{machine.cores} cores, memory {memory}; gates: {', '.join(gate_kinds())}; "
            f"cache: {default_root()}",
            markup=False,
        )
        print_table(
            "backends",
            ["backend", "engine", "verdict"],
            [
                [
                    name,
                    f"{p['engine']} {p['version']}",
                    "works" if p["available"] else str(p["problem"]),
                ]
                for name, p in backends.items()
            ],
        )
        missing = [name for name, there in packages.items() if not there]
        console().print(
            "compile side: complete"
            if compiles
            else f"compile side: missing {', '.join(missing)}; pip install 'edgemp[compile]'",
            markup=False,
        )
    if not any(p["available"] for p in backends.values()):
        raise typer.Exit(2)
