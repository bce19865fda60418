"""The project's own promises: what is in its packages, and that importing it stays cheap."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(target: str, folder: Path) -> list[str]:
    """The names in a wheel or an sdist made now, in `folder`."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (package,) = folder.iterdir()
    if target == "wheel":
        with zipfile.ZipFile(package) as wheel:
            return wheel.namelist()
    with tarfile.open(package) as sdist:
        # Every name begins with the folder gz_trio-VERSION.
        return [name.partition("/")[2] for name in sdist.getnames()]


def test_the_wheel_holds_the_library_its_types_and_the_license(tmp_path: Path) -> None:
    names = build("wheel", tmp_path)
    assert {"gz_trio/__init__.py", "gz_trio/py.typed"} <= set(names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"gz_trio"}


def test_the_sdist_holds_what_the_tests_and_the_docs_need(tmp_path: Path) -> None:
    names = build("sdist", tmp_path)
    assert {
        "LICENSE",
        "README.md",
        "conftest.py",
        "docs/conf.py",
        "noxfile.py",
        "pyproject.toml",
        "src/gz_trio/py.typed",
        "tests/test_project.py",
    } <= set(names)


@pytest.mark.parametrize("module", ["cyclopts", "gz_trio.cli", "gz_trio.testing"])
def test_importing_the_library_leaves_alone(module: str) -> None:
    code = f"import sys, gz_trio; sys.exit({module!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ci_runs_the_command_for_the_tests_that_the_readme_gives() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    demo, tests = re.findall(r"```sh\n(.+?)\n```", readme, re.DOTALL)
    assert demo.endswith(".venv/bin/gz-trio demo")
    assert f"\n{tests}\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
