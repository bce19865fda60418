"""The project's chores: `nox` runs the tests and the linters, `nox -l` lists the rest."""

import re
import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"  # it needs nothing that nox did not bring
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint"]

PYPROJECT = nox.project.load_toml("pyproject.toml")

ON_EVERY_CORE = (
    "--numprocesses=auto",
    # Examples follow one another in a file, and tests share there what is slow to start.
    "--dist=loadfile",
    # The longest files are of few tests, and would be the last.
    "--no-loadscope-reorder",
    # A test that hangs ends its process, and would be tried again in the next one.
    "--max-worker-restart=0",
)


def install(session: nox.Session, *groups: str) -> None:
    """Install the project, editable and with all extras, and dependency groups."""
    dependencies = nox.project.dependency_groups(PYPROJECT, *groups)
    session.install("--editable", ".[all]", *dependencies)


def install_for_node(session: nox.Session, folder: str) -> None:
    """Install what a program for Node needs, as its lock file says; without npm, nothing."""
    if shutil.which("npm"):
        with session.chdir(folder):
            session.run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", external=True)


def flake8_async(session: nox.Session, *folders: str, but: str = "", disable: str = "") -> None:
    """Check Trio code in folders, `but` for some paths; always without three of the checks.

    109: `timeout=` is a documented name here. 114 wants a list of all startable functions. 127:
    httpx is a dependency.
    """
    files = [str(path) for folder in folders for path in sorted(Path(folder).rglob("*.py"))]
    session.run(
        "flake8-async",
        f"--disable=ASYNC109,ASYNC114,ASYNC127,{disable}",
        "--transform-async-generator-decorators=_trio_fixture",
        *(file for file in files if not (but and re.search(but, file))),
    )


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests and the examples in the docs; arguments go to pytest.

    Without any, on every core, and those of replies over the other transports, too.
    """
    install(session, "tests")
    install_for_node(session, "tests/proxy/node")
    if session.posargs:
        session.run("pytest", *session.posargs)
    else:
        session.run("pytest", *ON_EVERY_CORE)
        of_replies = [
            *("tests/chat", "tests/test_front_end_plan.py", "tests/test_secrets.py"),
            # httpcore looks at all connections for each, so they take a third of all the time.
            "--ignore=tests/chat/test_thousand_streams.py",
            # Other processes have transports of their own.
            "--ignore=tests/chat/test_processes.py",
        ]
        for transport in ("streams", "httpx"):
            session.run("pytest", *ON_EVERY_CORE, f"--transport={transport}", *of_replies)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types, and which module imports which."""
    install(session, "tests", "bench", "lint", "examples")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("pyright")
    session.run("lint-imports")
    # 910: every async function is a checkpoint or says why not. That is the library's promise, not
    # that of the programs which come with it.
    flake8_async(session, "src", but="_cli|proxy|testing|simulate")
    programs = [f"src/gz_trio/{name}" for name in ("_cli", "proxy", "testing", "simulate")]
    flake8_async(session, *programs, disable="ASYNC910")
    # Tests do on purpose what a program must not.
    flake8_async(
        session,
        "tests",
        "benchmarks",
        "examples",
        disable="ASYNC103,ASYNC110,ASYNC111,ASYNC113,ASYNC120,ASYNC124,ASYNC401,ASYNC9",
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
    install_for_node(session, "examples/node")
    session.run("pytest", "tests/interop", *session.posargs)


@nox.session
def exhaustive(session: nox.Session) -> None:
    """Run what takes long: slow tests, and the hypothesis tests over many more examples."""
    install(session, "tests")
    arguments = session.posargs or [
        *("-m", "slow or hypothesis", "--hypothesis-profile=exhaustive"),
        *("-o", "faulthandler_timeout=3600"),  # one test runs for minutes
    ]
    session.run("pytest", *ON_EVERY_CORE, *arguments)


@nox.session
def coverage(session: nox.Session) -> None:
    """Show the lines and branches that no test reaches."""
    install(session, "tests")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report")
