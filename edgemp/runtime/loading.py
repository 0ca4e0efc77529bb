"""From a bundle to a running `Runtime`: engines opened, placement compared, functions built."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from edgemp.backends import load_backend
from edgemp.backends.base import Session
from edgemp.bundle import Bundle, artifact_of, check_runnable, read_bundle
from edgemp.errors import PlacementError
from edgemp.runtime.app import Runtime
from edgemp.runtime.nodes import FunctionCall, ModuleCall, build_nodes, output_names
from edgemp.runtime.placement import differences


def load_runtime(
    path: Path,
    *,
    public_key: Path | None = None,
    allow_fallback: bool = False,
    gated: bool = True,
) -> Runtime:
    """See `edgemp.load`."""
    bundle = read_bundle(path, public_key=public_key)
    return runtime_of(bundle, allow_fallback=allow_fallback, gated=gated)


def runtime_of(
    bundle: Bundle, *, allow_fallback: bool = False, gated: bool = True, any_machine: bool = False
) -> Runtime:
    """A runtime of an opened bundle; if a later part fails, engines opened before it are closed.

    With `any_machine` it is not asked whether the bundle was built for this kind of machine.
    """
    check_runnable(bundle, any_machine=any_machine)
    pipeline = bundle.pipeline
    calls: dict[str, ModuleCall | FunctionCall] = {}
    outputs: dict[str, list[str]] = {}
    sessions: dict[str, Session] = {}
    with ExitStack() as opened:
        for name, function in pipeline.functions.items():
            calls[name] = FunctionCall(name, function, bundle.assets(name))
            outputs[name] = list(function.outputs)
        for name, module in pipeline.modules.items():
            session = open_module(bundle, name, allow_fallback=allow_fallback)
            opened.callback(session.close)
            sessions[name] = session
            found = [spec.name for spec in bundle.module(name).outputs]
            calls[name] = ModuleCall(name, module, session, found)
            outputs[name] = [own for own, _ in output_names(name, module, found)]
        nodes = build_nodes(pipeline, calls, outputs, gated)
        inputs = {name: bundle.module(name).inputs for name in pipeline.modules}
        runtime = Runtime(pipeline, nodes, outputs, sessions, inputs)
        opened.pop_all()
    return runtime


def open_module(
    bundle: Bundle, name: str, *, allow_fallback: bool = False, threads: int | None = None
) -> Session:
    """One module's session, after comparing where its nodes run with what the bundle states.

    `threads` replaces the bundle's thread count.

    Raises:
        PlacementError: on any unit or precision that the bundle does not list, unless allowed.
    """
    artifact = artifact_of(bundle.manifest, name, bundle)
    if threads is not None:
        artifact = artifact.with_threads(threads)
    with ExitStack() as opened:
        session = load_backend(artifact.backend).open(artifact, bundle.manifest.target.target())
        opened.callback(session.close)
        moved = [] if allow_fallback else differences(artifact, session)
        if moved:
            raise PlacementError(
                f"{bundle.path}: module {name!r}: {'; '.join(moved)}; compile it for this machine, or "
                "pass allow_fallback (--allow-fallback) to run it all the same"
            )
        opened.pop_all()
    return session
