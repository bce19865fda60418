"""The benchmarks: `python -m benchmarks`."""
