"""The load simulator: how a gateway behaves when very many people chat with it.

`run` does a `Workload` and gives a `Result`, inside your own nursery or a test;
`gz-trio simulate` does it from the command line. It needs the extra `simulate`.
"""

try:
    from ._errors import TargetError
    from ._histograms import Percentiles
    from ._merging import Merge
    from ._records import RequestRecord
    from ._result import ClientBound, Result, Second
    from ._run import run
    from ._workload import Workload
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("hdrh", "tomli_w"):
        raise
    raise ModuleNotFoundError(
        f"the simulator needs the package {error.name}, which comes with the extra simulate: "
        "pip install 'gz-trio[simulate]'",
        name=error.name,
    ) from None

__all__ = [
    "ClientBound",
    "Merge",
    "Percentiles",
    "RequestRecord",
    "Result",
    "Second",
    "TargetError",
    "Workload",
    "run",
]
