"""Claim: compression to a budget keeps networks' answers where plain INT8 loses them.

    python benchmarks/compress.py [CASE ...] [--quick] [--minutes 30] [--json FILE]

Each case (minilm, students, ocr, clip, trimodal, subtitles; without names all of them, which takes two
hours or more) says at the top of its file in benchmarks/compression what is measured and on what. Latency is
that of one sample on this machine, all engines in turn, as the median of paired ratios to plain INT8 (NNCF's,
with OpenVINO's own choice of bf16 for the rest where the CPU has it).

What this does not show: other networks, other machines.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

CASES = {
    "minilm": "MiniLM-L6, 64 tokens",
    "students": "Students of MiniLM-L6",
    "ocr": "PP-OCRv6, rendered text",
    "clip": "Dual encoder of CLIP ViT-B/32's shape",
    "trimodal": "Digits seen, heard and read",
    "subtitles": "AR subtitles within 36 MB",
}
TRAINED = ("students", "ocr")
"""Cases that `--minutes` is for."""


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    sys.path[:] = [
        str(root),
        *(p for p in sys.path if Path(p or ".").resolve() != root / "benchmarks"),
    ]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds of timing")
    parser.add_argument("--minutes", type=float, help="of training, for the students")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    if unknown := set(args.cases) - set(CASES):
        parser.error(f"unknown case {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")

    from benchmarks.rows import print_table, write_rows

    rows = []
    for name in args.cases or CASES:
        more = {"minutes": args.minutes} if name in TRAINED else {}
        with redirect_stdout(sys.stderr):  # other tools' progress bars
            found = import_module(f"benchmarks.compression.{name}").rows(args.quick, **more)
        print_table(found, CASES[name])
        rows += found
    if args.json:
        write_rows(args.json, rows)
    return int(any(row.holds is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
