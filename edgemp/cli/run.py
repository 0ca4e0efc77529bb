"""`edgemp run`: executes a bundle on video, on samples or on its own golden steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    app.command("run")(run)


def run(
    bundle: Annotated[Path, typer.Argument(help="The .edgemp file.")],
    video: Annotated[
        Path | None, typer.Option(help="A video for the pipeline's video signal.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help=".npz: one array per signal, first axis = steps.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(min=0.001, help="Steps per second, instead of the source's own.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many steps.")] = None,
    render: Annotated[
        str | None, typer.Option(help="module:function (frame, result) -> frame, for --output.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="An .mp4 of rendered frames.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Public key; refuse the bundle unless signed by it.")
    ] = None,
    allow_fallback: Annotated[
        bool, typer.Option(help="Run even if nodes run elsewhere than the bundle states.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Execute a bundle step by step, gates included; show every result and where it comes from."""
    from itertools import islice

    from edgemp.bench.source import SourceSpec
    from edgemp.bundle import read_bundle
    from edgemp.cli.output import console, print_json
    from edgemp.cli.render import Writer
    from edgemp.outputs import VIDEO, check_output
    from edgemp.runtime.loading import runtime_of

    if output is not None:
        inputs = {"the bundle": bundle, "--video": video, "--samples": samples, "--key": key}
        check_output(output, VIDEO, inputs)
    opened = read_bundle(bundle, public_key=key)
    source = SourceSpec(video=video, samples=samples, fps=fps).open(opened)
    if steps is None and source.endless:
        steps = len(opened.manifest.steps) or 1
    rows = []
    with (
        runtime_of(opened, allow_fallback=allow_fallback) as runtime,
        Writer(output, render, source.fps) as writer,
    ):
        for signals, t in islice(source, steps):
            result = runtime.step(signals, t=t)
            writer.add(signals, result)
            row = {
                "t": result.t,
                "step_ms": result.step_ms,
                "results": {
                    name: {
                        "value": _plain(value.value),
                        "source": value.source,
                        "age_ms": value.age_ms,
                        "reason": value.reason,
                    }
                    for name, value in result.items()
                },
            }
            rows.append(row)
            if not json:
                shown = ", ".join(
                    f"{name}={_short(item.value)} [{item.source} {item.age_ms:.0f} ms: {item.reason}]"
                    for name, item in result.items()
                )
                console().print(f"{t:9.3f} s {result.step_ms:8.2f} ms  {shown}", markup=False)
        faults = dict(runtime.faults)
    if json:
        print_json({"bundle": str(bundle), "steps": rows, "faults": faults})


def _plain(value: Any) -> Any:
    """JSON for a result: small arrays as lists, large ones as their shape and range."""
    import numpy as np

    if isinstance(value, np.ndarray):
        if value.size <= 64:
            return _plain(value.tolist())
        return {"dtype": value.dtype.name, "shape": list(value.shape)}
    if isinstance(value, np.generic):
        item = value.item()
        return repr(value) if isinstance(item, np.generic) else _plain(item)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return repr(value)


def _short(value: Any) -> str:
    import numpy as np

    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
