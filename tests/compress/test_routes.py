"""What routes promise: parents before children, shares as asked or as the budget leaves room for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgemp.compress.students.routes import Purse, routes, settled
from edgemp.pipeline import Compression

SHARES = st.lists(st.sampled_from([0.25, 0.5, 0.75]), unique=True, max_size=2).map(tuple)


@given(SHARES, SHARES, SHARES, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_every_route_goes_on_from_one_before_it(
    depths: tuple[float, ...],
    widths: tuple[float, ...],
    ranks: tuple[float, ...],
    trimmed: bool,
    trains: bool,
    quantizes: bool,
    has_blocks: bool,
) -> None:
    tokens = {"tokens": "a:b", "unknown": 0} if trimmed else {}
    asked = Compression(depths=depths, widths=widths, ranks=ranks, **tokens)  # type: ignore[arg-type]
    seen = {""}
    for route in routes(asked, trains, quantizes, has_blocks):
        assert seen & set(route.parents), route
        assert route.name not in seen
        assert trains or not route.trains
        assert quantizes or not route.quantized
        seen.add(route.name)
    of_blocks = {f"depth-{s:.0%}" for s in depths} | {f"width-{s:.0%}" for s in widths}
    of_layers = {f"rank-{s:.0%}" for s in ranks}
    shrunk = {name for name in seen if name in of_blocks | of_layers}
    assert shrunk == (of_layers | (of_blocks if has_blocks else set()) if trains else set())


def test_all_students_of_a_trimmed_network_are_trimmed() -> None:
    asked = Compression(tokens="a:b", unknown=1, depths=(0.5,))
    every = {route.name: route for route in routes(asked, trains=True)}
    assert every["trimmed"].parents == ("",)
    assert every["int8"].parents == every["depth-50%"].parents == ("trimmed",)
    assert every["depth-50%-int8"].parents == ("depth-50%",)


def test_the_budget_decides_only_where_the_description_does_not() -> None:
    named = Compression(widths=(0.25,))
    assert settled(named, 0.5) is named
    assert settled(Compression(depths=()), 0.5).depths == ()
    assert settled(Compression(), None).depths == (0.5,)
    assert not settled(Compression(), 1.0).depths
    steered = settled(Compression(), 0.35)
    assert steered.depths == steered.widths == (0.35,)


def test_tokens_and_what_the_others_are_read_as_belong_together() -> None:
    with pytest.raises(ValidationError, match="give `tokens` and `unknown` together"):
        Compression(tokens="a:b")
    with pytest.raises(ValidationError, match="give `tokens` and `unknown` together"):
        Compression(unknown=3)


def test_minutes_that_a_route_leaves_go_to_those_after_it() -> None:
    every = routes(Compression(depths=()), trains=True)
    purse = Purse(8.0, every)
    trained = [route for route in every if route.trains]
    assert [route.weight for route in trained] == [2.0, 1.0, 2.0, 1.0]
    assert purse.offered(trained[0]) == pytest.approx(8.0 * 2 / 6)
    purse.settle(trained[0], 0.0)
    assert purse.offered(trained[1]) == pytest.approx(8.0 / 4)
