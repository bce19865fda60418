"""A Dask cluster for tests, in a process of its own: prints its address, ends with its input."""

from __future__ import annotations

import sys

from distributed import LocalCluster

from tests.children import say


def main() -> None:
    with LocalCluster(
        n_workers=2, processes=True, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        say(cluster.scheduler_address)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
