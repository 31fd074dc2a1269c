"""Keep what a benchmark run says in few lines: medians and spreads by test, without every single sample.

python benchmarks/summarise.py benchmarks/results/benchmarks.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

KEPT = ("min", "median", "iqr", "rounds")
UNTOLD = ("node", "release", "cpu", "python_build")
"""What says nothing about speed beside `cpu_model`, or names somebody's machine."""


def main() -> None:
    path = Path(sys.argv[1])
    data = json.loads(path.read_text())
    rows = [
        {
            "group": benchmark["group"],
            "name": benchmark["name"],
            "extra_info": benchmark["extra_info"],
            **{key: benchmark["stats"][key] for key in KEPT},
        }
        for benchmark in data["benchmarks"]
    ]
    machine = {key: value for key, value in data["machine_info"].items() if key not in UNTOLD}
    summary = {"machine_info": machine, "datetime": data["datetime"], "unit": "s", "benchmarks": rows}
    path.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
