"""Pipelines that several tests compile: a chain of modules and a function, and one with a metric."""

from __future__ import annotations

import torch

from edgemp.pipeline import FidelityBound, Function, Module, Pipeline, Signal
from tests.conftest import Given


class Doubler(torch.nn.Module):
    """y float32 [1, 16] -> twice that, through a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(16, 16, bias=False)
        torch.nn.init.eye_(self.inner.weight)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(y)


def chained(conv: Given) -> Pipeline:
    """conv -> torch module -> function."""
    return Pipeline(
        name="chain",
        signals={"x": Signal(dtype="float32", shape=(1, 3, 16, 16))},
        modules={
            "see": Module(network=str(conv.model), inputs={"x": "x"}),
            "double": Module(network="user_code:make", inputs={"y": "see.y"}),
        },
        functions={
            "best": Function(
                function="user_code:best", inputs={"scores": "double"}, outputs=("index",)
            )
        },
        results={"index": "best.index", "scores": "double"},
        samples="user_code:steps",
    )


def measured(conv: Given, metric: str, minimum: float) -> Pipeline:
    """The conv network with a task metric of the user's own."""
    return Pipeline(
        name="p",
        signals={"x": Signal(dtype="float32", shape=(1, 3, 16, 16))},
        modules={
            "net": Module(
                network=str(conv.model),
                inputs={"x": "x"},
                fidelity=FidelityBound(metric=metric, metric_min=minimum),
            )
        },
        results={"y": "net"},
    )
