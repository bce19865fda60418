"""The project's chores: `nox` runs the tests and the linters, `nox -l` lists the rest."""

from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"  # it needs nothing that nox did not bring
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint"]

PYPROJECT = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, *groups: str) -> None:
    """Install the project, editable and with all extras, and dependency groups."""
    dependencies = nox.project.dependency_groups(PYPROJECT, *groups)
    session.install("--editable", ".[all]", *dependencies)


def python_files(*folders: str) -> list[str]:
    return [str(path) for folder in folders for path in sorted(Path(folder).rglob("*.py"))]


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests and the examples in the docs; arguments go to pytest."""
    install(session, "tests")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types, and which module imports which."""
    install(session, "tests", "bench", "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("pyright")
    session.run("lint-imports")
    # Not ASYNC114 (it wants a list of every startable function), nor 127 (httpx is a dependency).
    session.run(
        "flake8-async",
        "--disable=ASYNC114,ASYNC127",
        "--transform-async-generator-decorators=_trio_fixture",
        *python_files("src"),
    )
    # Nor, outside the library, that every async function is a checkpoint, or needs to be async.
    session.run(
        "flake8-async",
        "--disable=ASYNC114,ASYNC127,ASYNC124,ASYNC9",
        *python_files("tests", "benchmarks", "examples"),
    )
    session.run("towncrier", "build", "--draft", "--version", "next")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into docs/_build/html; a warning is an error."""
    install(session, "docs")
    session.run(
        "sphinx-build",
        "-b",
        "html",
        "-nEW",
        "--keep-going",
        "docs",
        "docs/_build/html",
        *session.posargs,
    )


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks; `--quick` for the short form."""
    install(session, "bench")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(venv_backend="virtualenv")  # pip: uv would bring gigabytes of CUDA with torch
def interop(session: nox.Session) -> None:
    """Test against nginx and a real inference engine; nginx has to be installed."""
    install(session, "tests", "interop")
    session.run("pytest", "tests/interop", *session.posargs)


@nox.session
def exhaustive(session: nox.Session) -> None:
    """Run what takes long: slow tests, and the hypothesis tests over many more examples."""
    install(session, "tests")
    arguments = session.posargs or ["-m", "slow or hypothesis", "--hypothesis-profile=exhaustive"]
    session.run("pytest", *arguments)


@nox.session
def coverage(session: nox.Session) -> None:
    """Show the lines and branches that no test reaches."""
    install(session, "tests")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report")
