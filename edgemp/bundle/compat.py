"""Whether an opened bundle can run on this machine: backends, processor and host functions."""

from __future__ import annotations

from collections.abc import Collection

from edgemp.backends import backend_names
from edgemp.bundle.opened import Bundle
from edgemp.errors import UnknownBackendError, WrongTargetError
from edgemp.machine import Machine, this_machine
from edgemp.resolve import import_callable

ANY = "any"


def check_runnable(
    bundle: Bundle,
    *,
    machine: Machine | None = None,
    backends: Collection[str] | None = None,
    any_machine: bool = False,
    functions: bool = True,
    modules: Collection[str] | None = None,
) -> None:
    """Return if this machine has what the bundle needs; `machine` and `backends` stand in for it.

    With `any_machine`, another architecture or operating system is no reason to refuse; without
    `functions`, only the modules are going to run (or some `modules`), and the application's functions
    need not be there.

    Importing the pipeline's functions runs their modules' top-level code.

    Raises:
        UnknownBackendError: a module's backend is not registered here.
        WrongTargetError: another architecture, operating system or a missing CPU feature.
        FunctionMissingError: a function of the pipeline does not import, or is not callable.
    """
    installed = sorted(backend_names() if backends is None else backends)
    for name, module in bundle.manifest.modules.items():
        if module.backend not in installed and (modules is None or name in modules):
            raise UnknownBackendError(
                f"{bundle.path}: module {name!r} needs backend {module.backend!r}, which is not "
                f"installed here; installed: {', '.join(installed) or 'none'}"
            )
    if not any_machine:
        _check_target(bundle, machine or this_machine())
    for name, function in bundle.pipeline.functions.items() if functions else ():
        import_callable(function.function, f"{bundle.path}: function {name!r}")


def _check_target(bundle: Bundle, machine: Machine) -> None:
    target = bundle.manifest.target
    built = f"{bundle.path}: was built for {target.name} ({target.arch}, {target.os})"
    if target.arch not in (ANY, machine.arch) or target.os not in (ANY, machine.os):
        raise WrongTargetError(
            f"{built}; this machine is {machine.arch}, {machine.os}: compile it for this machine"
        )
    lacking = sorted(set(target.requires_isa) - machine.isa)
    # Where the flags cannot be read (not Linux) their absence proves nothing.
    if lacking and machine.isa:
        raise WrongTargetError(
            f"{built} and needs {', '.join(target.requires_isa)}; this processor lacks "
            f"{', '.join(lacking)}: compile it for this machine"
        )
