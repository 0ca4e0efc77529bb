"""`edgemp.compile`, the Python form of the command line's `compile`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgemp.pipeline import Pipeline
from edgemp.target import Target, load_target

if TYPE_CHECKING:
    from edgemp.compiler.compile import Compiled
    from edgemp.compiler.progress import Progress


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
        jobs: candidates built at a time.
        cache: folder of the stage cache; `$EDGEMP_CACHE` or the user's cache folder otherwise.

    Raises:
        FidelityError, BudgetError: nothing that holds was found; nothing was written.
        EdgempError: (subclasses) anything wrong with the description, networks, samples or output.
    """
    from edgemp.compiler.cache import StageCache
    from edgemp.compiler.choose import Budget
    from edgemp.compiler.compile import Options, compile_pipeline
    from edgemp.compiler.single import single_network

    samples = Path(samples) if samples is not None else None
    if not isinstance(pipeline, Pipeline):
        text = str(pipeline)
        pipeline = (
            Pipeline.from_yaml(text)
            if text.endswith((".yaml", ".yml"))
            else single_network(text, samples)
        )
    return compile_pipeline(
        pipeline,
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
        ),
        cache=StageCache(Path(cache)) if cache is not None else None,
        progress=progress,
    )
