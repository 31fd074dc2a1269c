"""The demo's report: one HTML file with the pictures inside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_MEASURES = {
    "label_accuracy": ("labels right", "{:.1%}"),
    "c2st": ("told from the teacher (50 % is best)", "{:.1%}"),
    "energy": ("denoising energy", "{:.3f}"),
    "feature_frechet": ("feature Frechet", "{:.1f}"),
    "recall": ("recall", "{:.3f}"),
    "precision": ("precision", "{:.3f}"),
    "rmse": ("pairing error", "{:.3f}"),
}

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}tr.ours{font-weight:bold;background:#eef6ee}"""


def write_html(path: Path, report: dict[str, Any], *, grid: Path) -> None:
    """Write the report; pictures are inlined, so the file can be sent alone."""
    quality, latency, engine = report["quality"], report["latency"], report["engine"]
    row = quality["rows"][0]
    verdict = "passed" if row["passed"] else f"below the bar ({', '.join(row['failures'])})"
    single = latency["runs"][0]
    times = single["latency_ms"]
    parts = [
        f"<!doctype html><meta charset=utf-8><title>distill-rt demo</title><style>{_STYLE}</style>",
        "<h1>distill-rt: a 4-step student of handwritten digits</h1>",
        _image(grid.read_bytes(), "samples"),
        f"<h2>Quality: {html.escape(verdict)}</h2>",
        f"<p>{quality['num_samples']} images per set at guidance {quality['guidance']:g}, against the teacher at 64 "
        "evaluations with fresh noise. The baselines run the teacher for as many steps as the student, so with guidance "
        "they evaluate the network twice as often.</p>",
        _quality_table(row),
        "<h2>Latency</h2>",
        f"<p>One image, {single['steps']} steps, {html.escape(engine['target'])} {html.escape(engine['precision'])}: "
        f"median {times['p50']:.2f} ms, 90th percentile {times['p90']:.2f} ms, 99th {times['p99']:.2f} ms; "
        f"overhead beside the network calls {latency['overhead']['p50_ms']:.3f} ms.</p>",
        _latency_table(latency["runs"]),
        _image(_latency_plot(single), "latency"),
        "<h2>The gate</h2><p>Largest distance between the engine and the student over all golden outputs.</p>",
        _gate_table(engine["gate"]),
        "<h2>Training</h2>",
        _image(_loss_plot(report["curves"]), "losses"),
        _table(("stage", "seconds"), [(name, f"{value:.1f}") for name, value in report["stages_s"].items()]),
    ]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("\n".join(parts) + "\n", encoding="utf-8")
    partial.replace(path)


def _quality_table(row: dict[str, Any]) -> str:
    sets = {f"student, {row['steps']} steps": row, "teacher, other noise (floor)": row["floor"], **row["baselines"]}
    head = ("", *(title for title, _ in _MEASURES.values()))
    body = [(name, *(fmt.format(m[key]) for key, (_, fmt) in _MEASURES.items())) for name, m in sets.items()]
    return _table(head, body, ours=0)


def _gate_table(gate: dict[str, Any]) -> str:
    rows = {**gate["components"], "bar of components": gate["component_bar"], **gate["trajectories"]}
    rows["bar of trajectories"] = gate["trajectory_bar"]
    body = [(n, f"{d['relative_l2']:.2e}", f"{d['psnr_db']:.1f}", f"{d['cosine']:.7f}") for n, d in rows.items()]
    return _table(("", "relative L2", "PSNR dB", "cosine"), body)


def _table(head: Sequence[str], body: Iterable[Sequence[str]], *, ours: int | None = None) -> str:
    def cells(kind: str, values: Sequence[str]) -> str:
        return "".join(f"<{kind}>{html.escape(value)}</{kind}>" for value in values)

    lines = [f"<tr{' class=ours' if i == ours else ''}>{cells('td', row)}</tr>" for i, row in enumerate(body)]
    return f"<table><tr>{cells('th', head)}</tr>{''.join(lines)}</table>"


def _loss_plot(curves: dict[str, list[list[float]]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), dpi=100, layout="constrained")
    axes: Any = figure.subplots(1, len(curves))
    for axis, (name, curve) in zip(axes, curves.items(), strict=True):
        axis.plot([step for step, _ in curve], [loss for _, loss in curve])
        axis.set(title=name, xlabel="training step", ylabel="loss", yscale="log")
    return _png(figure)


def _latency_table(runs: list[dict[str, Any]]) -> str:
    head = ("images", "p50 ms", "p90 ms", "p99 ms", "images per second")
    columns = ("p50", "p90", "p99")
    body = [
        (str(run["num_images"]), *(f"{run['latency_ms'][c]:.2f}" for c in columns), f"{run['images_per_s']:.0f}")
        for run in runs
    ]
    return _table(head, body)


def _latency_plot(run: dict[str, Any]) -> bytes:
    from matplotlib.figure import Figure

    stages = {name: stage["p50"] for name, stage in run["stages_ms"].items()}
    figure = Figure(figsize=(10, 2.0), dpi=100, layout="constrained")
    axis: Any = figure.subplots()
    left = 0.0
    for name, value in stages.items():
        axis.barh([0], [value], left=left, label=f"{name} {value:.3f} ms")
        left += value
    axis.set(yticks=[], xlabel="median ms of one request, by stage")
    figure.legend(ncols=6, fontsize=8, loc="outside upper center")
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _image(png: bytes, title: str) -> str:
    return f'<p><img alt="{title}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>'
