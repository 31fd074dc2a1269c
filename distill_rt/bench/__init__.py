"""The benchmark harness and its report."""
