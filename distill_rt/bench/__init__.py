"""The benchmark harness and its report."""

from distill_rt.bench.harness import bench_engine
from distill_rt.bench.report import BenchReport

__all__ = ["bench_engine", "BenchReport"]
