"""Load an engine in this fresh process, and time its first requests: ``python -P -m acceptance.first_request ENGINE``."""

from __future__ import annotations

import json
import statistics
import sys
import time


def main() -> None:
    started = time.perf_counter()
    import distill_rt

    with distill_rt.load(sys.argv[1]) as pipe:
        loaded = time.perf_counter()
        times = []
        for seed in range(21):
            start = time.perf_counter()
            pipe.generate(seed=seed, labels=[seed % 10], guidance=2.0)
            times.append(1e3 * (time.perf_counter() - start))
    later = statistics.median(times[1:])
    figures = {
        "import_and_load_ms": 1e3 * (loaded - started),
        "first_ms": times[0],
        "later_ms": later,
        "largest_later_ms": max(times[1:]),
        "first_over_later": times[0] / later,
        "torch_imported": "torch" in sys.modules,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
