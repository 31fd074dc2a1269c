"""What ``make pareto`` measured, as a picture and a table.

python benchmarks/pareto_report.py benchmarks/results/pareto.json --plot docs/pareto.svg --table docs/methods.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

BEGIN, END = "<!-- pareto:begin -->", "<!-- pareto:end -->"
AS_FAST = 1.05
"""A rival counts as being as fast up to this factor."""

STYLES = {"full": ("*", "black"), "smaller": ("o", "#4878a8"), "fewer steps": ("s", "#c07000")}
DISTANCES = {
    "c2st": "c2st against the teacher (0.5: the same)",
    "feature_frechet": "feature Frechet distance to the teacher",
}

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--plot", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True, help="Markdown file whose marked part is replaced")
    args = parser.parse_args()
    result = json.loads(args.results.read_text())
    plot(result, args.plot)
    text = args.table.read_text()
    before, rest = text.split(BEGIN, 1)
    args.table.write_text(f"{before}{BEGIN}\n{table(result)}\n{END}{rest.split(END, 1)[1]}")


def rival_of(row: Row, rows: list[Row], target: str) -> Row | None:
    """The best full-size student with fewer steps that is as fast as this one, by c2st, of the same seed."""
    bar = AS_FAST * row["latency"][target]["1"]["ratio"]
    rivals = [
        r
        for r in rows
        if r["kind"] == "fewer steps" and r["seed"] == row["seed"] and r["latency"][target]["1"]["ratio"] <= bar
    ]
    return min(rivals, key=lambda r: float(r["c2st"]), default=None)


def table(result: dict[str, Any]) -> str:
    rows: list[Row] = result["rows"]
    targets = list(rows[0]["latency"])
    head = ["student", "steps", "parameters", "MFLOP an image", *(f"{t}, 1 / 16 images" for t in targets), "seed"]
    head += ["passed", "c2st", "feature Frechet", "best as fast by fewer steps"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        speeds = ["{:.2f} / {:.2f}".format(*(row["latency"][t][n]["ratio"] for n in ("1", "16"))) for t in targets]
        rival = rival_of(row, rows, targets[0]) if row["kind"] == "smaller" else None
        against = ""
        if row["kind"] == "smaller":
            against = (
                "none is" if rival is None else f"{rival['name']}: {rival['c2st']:.3f}, {rival['feature_frechet']:.3f}"
            )
        cells = [row["name"], row["steps"], f"{row['parameters']:,}", f"{row['flops_per_image'] / 1e6:.0f}", *speeds]
        cells += [row["seed"], "yes" if row["passed"] else f"below bar: {', '.join(row['failures'])}"]
        cells += [f"{row['c2st']:.3f}", f"{row['feature_frechet']:.3f}", against]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    floors = {row["seed"]: row["floor"] for row in rows}
    floor = "; ".join(f"{f['c2st']:.3f} and {f['feature_frechet']:.3f} (seed {s})" for s, f in sorted(floors.items()))
    full = next(row for row in rows if row["kind"] == "full")["latency"]
    speeds = [f"{full[t]['1']['ms']:.2f} ms on {t}" for t in targets]
    lines.append(
        f"\nLatency is relative to the full student, fp32, one thread, {result['machine']['cpu']} ({', '.join(speeds)} for one "
        f"image). Floors of c2st and feature Frechet, the teacher against itself: {floor}. {result['num_samples']:,} samples."
    )
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Two distances over relative latency, a column per target, all seeds; hollow is below the bar."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "pareto"  # equal results give equal files
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows: list[Row] = result["rows"]
    targets = list(rows[0]["latency"])
    figure = Figure(figsize=(5.2 * len(targets), 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(DISTANCES), len(targets), sharex=True, sharey="row", squeeze=False)
    for row_of_axes, (measure, label) in zip(axes, DISTANCES.items(), strict=True):
        for axis, target in zip(row_of_axes, targets, strict=True):
            _panel(axis, rows, target, measure)
        row_of_axes[0].set_ylabel(label)
    for axis, target in zip(axes[0], targets, strict=True):
        axis.set_title(f"{target}, one image, one thread", fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("latency, full student = 1")
        axis.set_xlim(0.15, 1.1)
    axes[0][-1].legend(frameon=False, fontsize=9)
    figure.suptitle(
        "digits: small networks of 4 steps, full ones of fewer steps; dotted: the teacher itself", fontsize=10
    )
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(axis: Any, rows: list[Row], target: str, measure: str) -> None:
    for kind, (marker, colour) in STYLES.items():
        for row in (r for r in rows if r["kind"] == kind):
            face = colour if row["passed"] else "none"
            at = row["latency"][target]["1"]["ratio"]
            axis.plot(
                at, row[measure], marker, color=colour, markerfacecolor=face, markersize=12 if kind == "full" else 7
            )
        axis.plot([], [], marker, color=colour, label=kind)
    for i, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
        same = [row for row in rows if row["name"] == name]
        spot = (same[0]["latency"][target]["1"]["ratio"], max(row[measure] for row in same))
        left, below = i % 2 == 0, i // 2 % 2 == 1  # neighbours of one curve write to different sides
        axis.annotate(
            name,
            spot,
            xytext=(-5 if left else 5, -11 if below else 5),
            textcoords="offset points",
            fontsize=8,
            ha="right" if left else "left",
        )
    axis.axhline(float(np.mean([row["floor"][measure] for row in rows])), color="grey", linewidth=0.8, linestyle=":")
    axis.margins(y=0.12)


if __name__ == "__main__":
    main()
