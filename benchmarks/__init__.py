"""Benchmarks: `nox -s bench` runs them all, `nox -s bench -- --quick` in under three minutes.

They run on Linux: the load server is built on epoll, and /proc tells who was busy.
"""
