"""`python runtime.pyz VERB ...`, or `python -m samkd.deploy.runtime VERB ...`."""

import sys

from ...errors import MissingExtraError, SamkdError


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; a fault the user can act on ends as one line on stderr and its exit code."""
    try:
        try:
            from .cli import run

            return run(arguments)
        except ModuleNotFoundError as error:
            if error.name not in ("numpy", "nibabel"):
                raise
            raise MissingExtraError(
                f"{error.name} is not installed; run: python -m pip install -r requirements.txt (in the package)"
            ) from error
    except SamkdError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
