"""`edgemp.compile`, `edgemp.load` and `edgemp.finish`, the Python forms of the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgemp.errors import SignatureError
from edgemp.outputs import BUNDLE, check_output
from edgemp.pipeline import Pipeline
from edgemp.target import Target, load_target

if TYPE_CHECKING:
    from edgemp.compiler.finish import Finished
    from edgemp.compiler.outcome import Compiled
    from edgemp.compiler.progress import Progress
    from edgemp.runtime.app import Runtime


def compile(  # the name that users expect, as in re.compile
    pipeline: Pipeline | str | Path,
    output: str | Path,
    *,
    target: Target | str = "host",
    samples: str | Path | None = None,
    fidelity: float | None = None,
    budget_size: int | None = None,
    budget_latency: float | None = None,
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    minutes: float | None = None,
    data: Mapping[str, str] | None = None,
    seed: int = 0,
    jobs: int = 1,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Compiled:
    """Compile a pipeline (description, YAML file, or one ONNX file) and write a bundle to `output`.

    Args:
        pipeline: a `Pipeline`, or the path of a .yaml description or an .onnx network.
        target: a target's name, a .toml file, or a `Target`.
        samples: .npz with one array per signal (for an .onnx: per input), first axis = samples.
        fidelity: minimum cosine per output that replaces the modules' own.
        budget_size: bytes that all artifacts together may take.
        budget_latency: milliseconds (p50) that all modules, run once each, may take.
        backends, precisions: restrict the candidates; the untouched network always stays one.
        minutes: of training: students of the modules are made and offered too (docs/compress.md); 0:
            only those that need no training; None, without `data`: none.
        data: training samples per module, in place of its `compress.data`.
        jobs: candidates built at a time.
        cache: folder of the stage cache; `$EDGEMP_CACHE` or the user's cache folder otherwise.

    Raises:
        FidelityError, BudgetError: nothing that holds was found; nothing was written.
        EdgempError: (subclasses) anything wrong with the description, networks, samples or output.
    """
    from edgemp.compiler.cache import StageCache
    from edgemp.compiler.choose import Budget
    from edgemp.compiler.compile import compile_pipeline
    from edgemp.compiler.outcome import Options
    from edgemp.compiler.single import described
    from edgemp.compiler.students import Asked

    given = {
        "the description or network": None if isinstance(pipeline, Pipeline) else pipeline,
        "the file of samples": samples,
        "the target's file": str(target) if str(target).endswith(".toml") else None,
    }
    check_output(Path(output), BUNDLE, given)
    samples = Path(samples) if samples is not None else None
    return compile_pipeline(
        described(pipeline, samples),
        load_target(target) if isinstance(target, str) else target,
        Path(output),
        samples=samples,
        options=Options(
            budget=Budget(budget_size, budget_latency),
            fidelity=fidelity,
            seed=seed,
            jobs=jobs,
            backends=tuple(backends) if backends else None,
            precisions=tuple(precisions) if precisions else None,
            asked=Asked(minutes, data or {}) if minutes is not None or data else None,
        ),
        cache=StageCache(Path(cache)) if cache is not None else None,
        progress=progress,
    )


def finish(
    bundle: str | Path,
    output: str | Path | None = None,
    *,
    public_key: str | Path | None = None,
    progress: Progress | None = None,
) -> Finished:
    """On the device: build, check and time what the bundle left to it; write it sealed.

    Written in place of `bundle` unless `output` is given. See `edgemp.compiler.finish`.

    Raises:
        ToolchainMissing, WrongTargetError: this is not the device, or an engine is missing.
        EdgempError: nothing is left to finish.
    """
    from edgemp.compiler.finish import finish_bundle

    return finish_bundle(
        Path(bundle),
        Path(output) if output is not None else None,
        public_key=Path(public_key) if public_key is not None else None,
        progress=progress,
    )


def load(
    path: str | Path,
    *,
    public_key: str | Path | None = None,
    allow_fallback: bool = False,
    gated: bool = True,
    finish: bool = False,
) -> Runtime:
    """Open a bundle, check all of it, and load every module on its engine.

    With `public_key` (an Ed25519 PEM file) an unsigned or wrongly signed bundle is refused.
    `gated=False` opens every gate, for comparisons. With `allow_fallback` nodes may run on other
    units than the bundle states. A bundle of state deferred runs from the artifacts that it has;
    `finish=True` first finishes it in place, which may take minutes, once.

    Raises:
        BundleError: (a subclass of it) if the file is damaged, unsafe, or made for another machine.
        FunctionMissingError: if a host function cannot be imported here.
        PlacementError: if an engine would run nodes elsewhere than stated.
        ToolchainMissing: with `finish`, if an engine that the bundle waits for is not installed.
        SignatureError: also with `finish` and `public_key` together, for a deferred bundle.
    """
    from edgemp.runtime.loading import load_runtime

    path = Path(path)
    key = Path(public_key) if public_key else None
    if finish:
        from edgemp.bundle import read_bundle
        from edgemp.compiler.finish import finish_bundle

        if read_bundle(path, public_key=key).manifest.state == "deferred":
            if key is not None:
                raise SignatureError(
                    f"{path}: finishing would replace the signed bundle by an unsigned one; run `edgemp "
                    "finish`, sign the result, and load that"
                )
            finish_bundle(path)
    return load_runtime(path, public_key=key, allow_fallback=allow_fallback, gated=gated)
