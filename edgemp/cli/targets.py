"""`edgemp targets`: lists the devices that bundles can be compiled for, or shows one with its sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgemp.target import Figure, Target

STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
BINARY_STEPS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def register(app: typer.Typer) -> None:
    app.command("targets")(targets)


def targets(
    name: Annotated[
        str | None, typer.Argument(help="A target's name or a .toml file; all if left out.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List the targets, or show one with everything that is known about it."""
    from edgemp.cli.output import print_json, print_table
    from edgemp.target import load_target, target_names

    found = [load_target(item) for item in ([name] if name else target_names())]
    if json:
        print_json({target.name: target.model_dump(mode="json") for target in found})
    elif name:
        _show(found[0])
    else:
        rows = [
            [
                t.name,
                f"{t.arch} {t.os}",
                ", ".join(u.name for u in t.units),
                ", ".join(t.backends),
                t.description,
            ]
            for t in found
        ]
        print_table("targets", ["target", "machine", "units", "backends", "description"], rows)


def _show(target: Target) -> None:
    from edgemp.cli.output import print_table

    print_table(target.name, ["field", "value"], _facts(target))
    print_table(
        "\nunits",
        ["unit", "kind", "cores", "precisions", "options"],
        [
            [
                unit.name,
                unit.kind,
                str(unit.cores),
                ", ".join(unit.precisions),
                ", ".join(f"{key}={value}" for key, value in unit.options.items()),
            ]
            for unit in target.units
        ],
    )
    print_table(
        "\nfigures (rates are dense peaks; a multiply-add is two operations)",
        ["what", "value", "basis", "source", "note"],
        [[what, shown, f.basis, f.source, f.note] for what, shown, f in _figures(target)],
    )
    if target.power_modes:
        print_table(
            "\npower modes",
            ["mode", "watts", "command"],
            [
                [mode.name, f"{mode.watts.value:g}" if mode.watts else "not stated", mode.command]
                for mode in target.power_modes
            ],
        )
    if target.op_limits:
        print_table(
            "\nknown limits",
            ["backend", "operator", "reason", "source"],
            [[limit.backend, str(limit), limit.reason, limit.source] for limit in target.op_limits],
        )
    print_table("\nsources", ["key", "page or document"], [list(s) for s in target.sources.items()])


def _facts(target: Target) -> list[list[str]]:
    telemetry = target.telemetry
    facts = {
        "description": target.description,
        "machine": f"{target.arch} {target.os}"
        + (f", glibc {target.glibc}" if target.glibc else ""),
        "processor": target.cpu,
        "cores": str(target.cores),
        "mcpu (LLVM)": target.mcpu,
        "instruction sets": " ".join(target.isa),
        "backends": ", ".join(target.backends),
        "known by": target.identify,
        "this machine": "yes" if target.is_this_machine else "no",
        "power files": " ".join(telemetry.power),
        "temperature files": " ".join(telemetry.temperature),
        "tools": ", ".join(telemetry.tools),
    }
    return [[key, value] for key, value in facts.items() if value]


def _figures(target: Target) -> list[tuple[str, str, Figure]]:
    """(what, readable value, figure), power modes included."""
    found = []
    for unit in target.units:
        for kind, rates in (("matrix", unit.matrix), ("vector", unit.vector)):
            for precision, rate in rates.items():
                found.append((f"{unit.name} {kind} {precision}", _rate(precision, rate), rate))
        for name, size in unit.on_chip.items():
            found.append((f"{unit.name} {name}", _size(size), size))
        if unit.launch_us is not None:
            found.append((f"{unit.name} launch", f"{unit.launch_us.value:g} us", unit.launch_us))
    if target.memory.capacity is not None:
        found.append(("memory", _size(target.memory.capacity), target.memory.capacity))
    if target.memory.bandwidth is not None:
        shown = _scaled(target.memory.bandwidth.value, "B/s")
        found.append(("memory bandwidth", shown, target.memory.bandwidth))
    for mode in target.power_modes:
        if mode.watts is not None:
            found.append((f"power mode {mode.name}", f"{mode.watts.value:g} W", mode.watts))
    return found


def _rate(precision: str, figure: Figure) -> str:
    """TOPS for integers, TFLOPS for floating point, with three digits."""
    return _scaled(figure.value, "OPS" if precision.startswith("int") else "FLOPS")


def _size(figure: Figure) -> str:
    for step, unit in BINARY_STEPS:
        if figure.value >= step:
            return f"{figure.value / step:.4g} {unit}"
    return f"{figure.value:g} B"


def _scaled(value: float, unit: str) -> str:
    for step, prefix in STEPS:
        # Bandwidths of terabytes are customarily given in gigabytes.
        if value >= step and not (prefix == "T" and unit == "B/s"):
            return f"{value / step:.4g} {prefix}{unit}"
    return f"{value:g} {unit}"
