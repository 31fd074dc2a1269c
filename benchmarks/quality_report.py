"""What ``make quality`` measured, as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

BEGIN, END = "<!-- quality:begin -->", "<!-- quality:end -->"
COLUMNS = 3

Row = dict[str, Any]


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace what stands between the markers of a Markdown file."""
    head = "| method | data | NFE | seed | passed | c2st (floor, best naive) | energy (floor) | recall | swd | labels right |\n"
    lines = [head + "|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        if row["control"]:
            continue
        best = min(m["c2st"] for m in row["baselines"].values())
        labels = (
            ""
            if row["label_accuracy"] is None
            else f"{row['label_accuracy']:.3f} ({row['floor']['label_accuracy']:.3f})"
        )
        verdict_ = "yes" if row["passed"] else f"below bar: {', '.join(row['failures'])}"
        floor = row["floor"]
        cells = [row["method"], row["dataset"], row["nfe"], row["seed"], verdict_]
        cells += [
            f"{row['c2st']:.3f} ({floor['c2st']:.3f}, {best:.3f})",
            f"{row['energy']:.3f} ({floor['energy']:.3f})",
        ]
        cells += [f"{row['recall']:.3f}", f"{row['swd']:.3f}", labels]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    failed = sum(not row["passed"] for row in rows if row["control"])
    lines.append(f"\nNegative controls: {failed} of {sum(row['control'] for row in rows)} fail, as they must.")
    text = path.read_text()
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    path.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


def plot(path: Path, rows: list[Row]) -> None:
    """c2st against evaluations: a panel for each method, seeds as points, the best naive baseline dotted."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "quality"
    import matplotlib.pyplot as plt

    students = [row for row in rows if not row["control"]]
    panels = list(dict.fromkeys(row["method"] for row in students))
    datasets = list(dict.fromkeys(row["dataset"] for row in students))
    colours = dict(zip(datasets, plt.get_cmap("tab10").colors, strict=False))
    num_rows = -(-len(panels) // COLUMNS)
    figure, axes = plt.subplots(
        num_rows, COLUMNS, figsize=(3.2 * COLUMNS, 1.9 * num_rows), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, method in zip(axes.flat, panels, strict=False):
        for dataset in datasets:
            mine = [row for row in students if (row["method"], row["dataset"]) == (method, dataset)]
            if mine:
                _panel(axis, mine, colours[dataset], dataset)
        axis.set_title(method, fontsize=9)
        axis.set_xscale("log", base=2)
        counts = sorted({row["nfe"] for row in students if row["method"] == method})
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    handles = [plt.Line2D([], [], color=colours[name], marker="o", label=name) for name in datasets]
    handles += [
        plt.Line2D([], [], color="grey", marker="x", linestyle="", label="below its bar"),
        plt.Line2D([], [], color="grey", linestyle=":", label="best naive baseline"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8)
    figure.supxlabel("evaluations of the network", fontsize=9)
    figure.supylabel("c2st against the teacher (0.5: the same)", fontsize=9)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _panel(axis: Any, rows: list[Row], colour: Any, dataset: str) -> None:
    counts = sorted({row["nfe"] for row in rows})
    by_count = {count: [row for row in rows if row["nfe"] == count] for count in counts}
    axis.plot(counts, [np.mean([row["c2st"] for row in by_count[n]]) for n in counts], color=colour, linewidth=1)
    naive = [np.mean([min(m["c2st"] for m in row["baselines"].values()) for row in by_count[n]]) for n in counts]
    axis.plot(counts, naive, color=colour, linestyle=":", linewidth=1, marker="_")
    for row in rows:
        axis.plot(row["nfe"], row["c2st"], color=colour, marker="o" if row["passed"] else "x", markersize=4)
