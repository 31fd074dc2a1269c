"""Keep what one `make demo` gave: its report as benchmarks/results/demo.json, and the table of the README made from it.

python benchmarks/demo_figures.py demo/report.json
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.json that the demo left")
    args = parser.parse_args()
    report = json.loads(args.report.read_text())
    for run in report["latency"]["runs"]:
        run.pop("samples_ms")  # the summaries say enough
    (ROOT / "benchmarks/results").mkdir(exist_ok=True)
    (ROOT / "benchmarks/results/demo.json").write_text(json.dumps(report, indent=1) + "\n")
    shutil.copyfile(args.report.with_name("grid.png"), ROOT / "docs/demo-grid.png")
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN, 1)
    readme.write_text(f"{before}{BEGIN}\n{_text(report)}\n{END}{rest.split(END, 1)[1]}")


def _text(report: dict[str, Any]) -> str:
    row, latency, engine = report["quality"]["rows"][0], report["latency"], report["engine"]
    machine = latency["machine"]
    naive = {name: m for name, m in row["baselines"].items() if name.startswith("teacher")}
    lines = [
        "![rows: teacher at 64 evaluations, teacher at 4, student at 4](docs/demo-grid.png)",
        "",
        f"One `make demo` on {machine['processor']}, {machine['cores']} cores ({report['seconds']:.0f} s after installation; "
        "`benchmarks/results/demo.json`):",
        "",
        "| | labels right | told from the teacher (50 % is best) | recall | feature Frechet |",
        "|---|---|---|---|---|",
        _row("**student, 4 evaluations**", row),
        _row("teacher, other noise (the floor)", row["floor"]),
        *(_row(f"{name}, {row['steps']} steps", m) for name, m in naive.items()),
        "",
        f"| {engine['target']} {engine['precision']} | median ms | 99th percentile ms | images per second |",
        "|---|---|---|---|",
    ]
    for run in latency["runs"]:
        times = run["latency_ms"]
        images = "1 image" if run["num_images"] == 1 else f"{run['num_images']} images"
        lines.append(
            f"| {images}, {run['steps']} steps | {times['p50']:.2f} | {times['p99']:.2f} | {run['images_per_s']:.0f} |"
        )
    lines += [
        "",
        f"The runtime adds {latency['overhead']['p50_ms']:.3f} ms to the network calls of one image. "
        "[Quality of every method](docs/methods.md), [backends against each other](docs/backends.md).",
    ]
    return "\n".join(lines)


def _row(name: str, m: dict[str, Any]) -> str:
    return f"| {name} | {m['label_accuracy']:.1%} | {m['c2st']:.1%} | {m['recall']:.3f} | {m['feature_frechet']:.1f} |"


if __name__ == "__main__":
    main()
