"""The folder of a run: the workload, each request, and the result."""

from __future__ import annotations

import csv
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from ._errors import TargetError
from ._records import RequestRecord
from ._report import report
from ._result import Result
from ._workload import Workload

WORKLOAD, REQUESTS, RESULT, REPORT = "workload.toml", "requests.csv", "result.json", "report.html"
PARQUET = "requests.parquet"


class RunFolder:
    """Writes what comes out of a run, the requests as they come.

    A run that ends before its first request leaves nothing.

    Args:
        path: The folder; it is made if it is not there.
        workload: What is done.
        parquet: Whether to write the requests as Parquet too.

    Raises:
        TargetError: It cannot be written; or it holds another run; or a package is not there that
            will be needed at the end, when it would be too late.
    """

    def __init__(self, path: Path, workload: Workload, *, parquet: bool = False) -> None:
        if workload.prompts is not None:  # A path in the file would begin at the folder.
            workload = replace(workload, prompts=str(Path(workload.prompts).absolute()))
        self.path = path
        self._parquet = parquet
        self._wrote = False
        _need("the report", "simulate", "jinja2", "plotly")
        if parquet:
            _need("--parquet", "parquet", "pyarrow")
        with self._writing():
            path.mkdir(parents=True, exist_ok=True)
            for name in (REQUESTS, RESULT, REPORT, WORKLOAD, PARQUET):
                if (path / name).exists():
                    raise TargetError(f"{path} holds a {name} already: give another --output")
            self._file = (path / REQUESTS).open("w", newline="", encoding="utf-8")
            (path / WORKLOAD).write_text(workload.toml(), encoding="utf-8")
        self._csv = csv.writer(self._file)
        self._csv.writerow(RequestRecord.__struct_fields__)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        with self._writing():
            self._file.close()
            if not self._wrote:
                (self.path / REQUESTS).unlink()
                (self.path / WORKLOAD).unlink()
                with suppress(OSError):  # It holds something of somebody else's.
                    self.path.rmdir()

    def add(self, records: Iterable[RequestRecord]) -> None:
        """Write requests that are over.

        Raises:
            TargetError: They cannot be written.
        """
        rows = [_row(record) for record in records]
        self._wrote = self._wrote or bool(rows)
        with self._writing():
            self._csv.writerows(rows)

    def finish(self, result: Result) -> None:
        """Write the result, and the page that shows it.

        Raises:
            TargetError: They cannot be written.
        """
        self._wrote = True
        with self._writing():
            self._file.flush()
            (self.path / RESULT).write_bytes(result.json())
            (self.path / REPORT).write_text(report(result), encoding="utf-8")
            if self._parquet:
                # They bring no types: by name, so that no checker asks for them.
                table = import_module("pyarrow.csv").read_csv(self.path / REQUESTS)
                import_module("pyarrow.parquet").write_table(table, self.path / PARQUET)

    @contextmanager
    def _writing(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise TargetError(f"{self.path} cannot be written: {reason}") from None


def _need(what: str, extra: str, *packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise TargetError(
                f"{what} needs the package {package}, which comes with the extra {extra}: "
                f"pip install 'gz-trio[{extra}]'"
            )


def _row(record: RequestRecord) -> list[object]:
    return [
        str(value).lower() if isinstance(value, bool) else value
        for value in msgspec.structs.astuple(record)
    ]
