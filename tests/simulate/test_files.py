"""The folder of a run: the workload to do it again, each request, and the result."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from gz_trio.simulate import RequestRecord, Result, TargetError, Workload
from gz_trio.simulate._files import RunFolder
from tests.simulate.records import a_record
from tests.simulate.test_merging import result_of


def written(folder: Path, workload: Workload, *records: RequestRecord) -> Result:
    result = result_of(*records, workload=workload)
    with RunFolder(folder, workload) as files:
        files.add(records)
        files.finish(result)
    return result


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "requests.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_workload_in_it_is_the_one_that_was_done(tmp_path: Path) -> None:
    workload = Workload(users=3, duration="5s", model=("a=2", "b"), slo=("ttft=1s",))
    written(tmp_path / "run", workload, a_record())
    assert Workload.read(tmp_path / "run" / "workload.toml") == workload


def test_its_prompts_are_found_again_wherever_the_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = Path("chats.jsonl")
    prompts.touch()
    written(Path("runs/1"), Workload(users=1, prompts=str(prompts)), a_record())
    again = Workload.read("runs/1/workload.toml").prompts
    assert again is not None
    assert Path(again).samefile(prompts)


def test_each_request_is_a_row_with_a_column_for_each_of_its_facts(tmp_path: Path) -> None:
    record = a_record(taken_up="replay+cursor", lost=None, window=False, error="E, 'f'")
    written(tmp_path, Workload(users=1), record, a_record(session=1))
    first, second = rows(tmp_path)
    assert tuple(first) == RequestRecord.__struct_fields__
    assert (first["taken_up"], first["error"]) == ("replay+cursor", "E, 'f'")
    assert (first["lost"], first["window"], second["window"]) == ("", "false", "true")
    assert [int(row["first"]) for row in (first, second)] == [record.first] * 2
    assert second["session"] == "1"


def test_the_result_in_it_is_read_as_it_was(tmp_path: Path) -> None:
    result = written(tmp_path, Workload(users=1), a_record())
    assert Result.read(tmp_path) == result
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path: Path) -> None:
    written(tmp_path, Workload(users=1), a_record())
    before = rows(tmp_path)
    with pytest.raises(TargetError, match=r"already: give another --output$"):
        RunFolder(tmp_path, Workload(users=1))
    assert rows(tmp_path) == before


def test_one_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TargetError, match=r"file/run cannot be written: Not a directory$"):
        RunFolder(tmp_path / "file" / "run", Workload(users=1))


def test_what_was_measured_before_a_failure_is_there(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path, Workload(users=1)) as files:
        files.add([a_record()])
        raise ZeroDivisionError
    assert len(rows(tmp_path)) == 1
