"""Benchmarks: `nox -s bench` runs them all, `nox -s bench -- --quick` in under three minutes."""
