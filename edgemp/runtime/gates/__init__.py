"""Gates switch a module off while its input holds nothing new; one file per kind of gate."""

from __future__ import annotations

from importlib.metadata import entry_points

from pydantic import ValidationError

from edgemp.errors import PipelineError
from edgemp.plugins import loaded
from edgemp.runtime.gates.base import Decision, Gate, GatePolicy

__all__ = ["Decision", "Gate", "GatePolicy", "create_gate", "gate_kinds", "gate_policy"]


def gate_kinds() -> list[str]:
    """The names of the installed kinds of gate."""
    return sorted(point.name for point in entry_points(group="edgemp.gates"))


def gate_policy(
    kind: str, options: dict[str, object], where: str = "gate"
) -> tuple[type[Gate], GatePolicy]:
    """The class of a kind of gate, and its checked policy.

    Raises:
        PipelineError: for an unknown kind or invalid options; `where` names the module.
    """
    for point in entry_points(group="edgemp.gates", name=kind):
        gate_class: type[Gate] = loaded(
            point.load, PipelineError, f"{where}: gate {kind!r} ({point.value})"
        )
        try:
            return gate_class, gate_class.Policy.model_validate(options)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
                for item in error.errors()
            )
            raise PipelineError(f"{where}: gate {kind!r} has invalid options: {problems}") from None
    raise PipelineError(
        f"{where}: unknown gate kind {kind!r}; installed kinds: {', '.join(gate_kinds())}"
    )


def create_gate(kind: str, options: dict[str, object], where: str = "gate") -> Gate:
    """Build a gate of `kind` with its policy `options`; raises what `gate_policy` raises."""
    gate_class, policy = gate_policy(kind, options, where)
    return gate_class(policy)
