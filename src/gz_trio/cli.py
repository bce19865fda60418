"""The entry point of the `gz-trio` command, which needs the extra `cli`."""

import sys
from collections.abc import Sequence

_OF_THE_EXTRA = ("cyclopts", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; by default `sys.argv[1:]`.

    Returns:
        The exit code: 0, 1 for a failure, 2 for bad arguments, 130 after Ctrl-C.
    """
    try:
        from ._cli.app import run  # noqa: PLC0415  it needs the extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _OF_THE_EXTRA:
            raise
        print(  # noqa: T201
            f"gz-trio: the command line needs the package {error.name}, which comes with the "
            "extra cli: pip install 'gz-trio[cli]'",
            file=sys.stderr,
        )
        return 1
    return run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
