"""The building blocks of a self-contained HTML page: escaping, tables, numbers, and its style."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from edgemp import sizes

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--panel:#f6f7f9;--ink:#16191d;--soft:#5a6470;--line:#dfe3e8;
--faint:#cfd6de;--accent:#1d5fd1;--good:#12805c;--bad:#c22f2f;--warn:#fff6e0;--warn-line:#e3b341;
--r0:#1d5fd1;--r1:#d9780a;--r2:#0f9488;--r3:#8b3fd9;--r4:#6b7684}
@media (prefers-color-scheme:dark){:root{--bg:#12151a;--panel:#1a1f26;--ink:#e8ebef;--soft:#9aa5b1;
--line:#2c333d;--faint:#3a434f;--accent:#6ea8ff;--good:#4cc38a;--bad:#ff7b72;--warn:#2b2413;
--warn-line:#8a6d1f;--r0:#6ea8ff;--r1:#f0a04b;--r2:#3fc1b3;--r3:#c08bff;--r4:#8f9bab}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:1040px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:28px;line-height:1.2;margin:0 0 4px;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:19px;margin:44px 0 4px;letter-spacing:-.01em}
h3{font-size:15px;margin:24px 0 6px}
p{margin:0 0 12px;max-width:72ch}
.soft,small{color:var(--soft)} small{font-size:13px}
code{font:13px/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:24px 0}
.tile{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.tile b{display:block;font-size:23px;line-height:1.25;font-weight:650;
font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 20px;margin:12px 0}
dt{color:var(--soft)} dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:8px 0 4px;border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;text-align:left;vertical-align:top;
border-bottom:1px solid var(--line)}
tr:last-child td{border-bottom:0}
th{font-weight:600;font-size:12.5px;color:var(--soft);background:var(--panel);white-space:nowrap;
vertical-align:bottom}
td.num,th.num{text-align:right;white-space:nowrap} td.word{white-space:nowrap}
td.text{min-width:15em;overflow-wrap:anywhere}
tr.strong td{font-weight:600}
.good{color:var(--good)} .bad{color:var(--bad)} .good,.bad{font-weight:600}
.notes{background:var(--warn);border:1px solid var(--warn-line);border-radius:10px;margin:16px 0;
padding:10px 16px 10px 32px} .notes li{margin:2px 0}
.lane{margin:14px 0 10px} .lane svg{display:block;width:100%;height:26px;border-radius:4px}
.lane p{margin:0;font-size:13px} .lane .name{font-weight:600;font-size:14px;margin-bottom:3px}
.axis{display:flex;justify-content:space-between;font-size:12.5px;color:var(--soft)}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;margin:8px 0 0}
.key i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px}
.kept{fill:var(--faint);background:var(--faint)} .failed{fill:var(--bad);background:var(--bad)}
.r0{fill:var(--r0);background:var(--r0)} .r1{fill:var(--r1);background:var(--r1)}
.r2{fill:var(--r2);background:var(--r2)} .r3{fill:var(--r3);background:var(--r3)}
.r4{fill:var(--r4);background:var(--r4)}
.plot{display:block;width:100%;max-width:580px;height:auto;margin:8px 0}
.plot text{font-size:11.5px;fill:var(--soft)} .plot .grid{stroke:var(--line);stroke-width:1}
.plot .front{fill:none;stroke:var(--good);stroke-width:1.5;stroke-dasharray:4 3;opacity:.75}
.plot .holds{fill:var(--good)} .plot .fails{fill:var(--bg);stroke:var(--bad);stroke-width:1.8}
.plot .chosen{fill:none;stroke:var(--accent);stroke-width:2.4}
.plot text.number{fill:var(--ink);font-weight:600}
footer{margin-top:48px;padding-top:12px;border-top:1px solid var(--line);color:var(--soft);
font-size:13px}
@media (max-width:600px){main{padding:20px 14px 48px} h1{font-size:23px}
dl{grid-template-columns:1fr}
dt{margin-top:6px;font-size:13px} th,td{padding:6px 9px} .tile b{font-size:20px}}
@media print{.scroll{overflow:visible} main{max-width:none}}
"""


@dataclass(frozen=True)
class Html:
    """Markup that is already safe; everything else is escaped."""

    markup: str


Cell = str | int | Html | None


def text(cell: Cell) -> str:
    """Markup of a cell; None is a dash."""
    if isinstance(cell, Html):
        return cell.markup
    return "–" if cell is None else escape(str(cell))


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    kinds: str,
    strong: int | None = None,
) -> str:
    """A table; `kinds` has a letter per column: n(umber), w(ord, never broken), t(ext).

    `strong` is the index of a row to emphasise.
    """
    classes = [{"n": "num", "w": "word", "t": "text"}[kind] for kind in kinds]
    head = "".join(
        f'<th class="{kind}">{escape(heading)}</th>'
        for heading, kind in zip(headings, classes, strict=True)
    )
    body = "".join(
        ('<tr class="strong">' if index == strong else "<tr>")
        + "".join(
            f'<td class="{kind}">{text(cell)}</td>' for cell, kind in zip(row, classes, strict=True)
        )
        + "</tr>"
        for index, row in enumerate(rows)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, Cell]]) -> str:
    """A list of names with values; pairs without a value are left out."""
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{text(value)}</dd>"
        for name, value in pairs
        if value is not None and value != ""
    )
    return f"<dl>{items}</dl>"


def tiles(pairs: Iterable[tuple[str, Cell]]) -> str:
    """The headline figures: (what it is, figure)."""
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><b>{text(value)}</b><span>{escape(name)}</span></div>'
            for name, value in pairs
            if value is not None
        )
        + "</div>"
    )


def verdict(holds: bool) -> Html:
    if holds:
        return Html('<span class="good">holds</span>')
    return Html('<span class="bad">does not hold</span>')


def number(value: float | None, digits: int = 3) -> str | None:
    """`value` with `digits` significant figures, never in powers of ten; None stays None."""
    if value is None:
        return None
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = int(f"{abs(value):.{digits - 1}e}".partition("e")[2])
    decimals = max(0, digits - 1 - exponent)
    return f"{value:,.{decimals}f}"


def size(count: float | None) -> str | None:
    """Bytes for people; None stays None."""
    return None if count is None else sizes.size(count)


def cosine(value: float | None) -> str | None:
    """Rounded down, so that a cosine below its bound is never printed as equal to it."""
    return None if value is None else f"{math.floor(value * 1e5 + 1e-9) / 1e5:.5f}"


def percent(share: float | None) -> str | None:
    return None if share is None else f"{share * 100:.1f} %"


def page(title: str, body: str) -> str:
    """The whole document; it refers to nothing outside itself and runs no script."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
