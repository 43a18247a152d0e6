"""The page and its HTTP interface: scans are uploaded, segmented or clicked into shape, and their masks fetched."""

from .....errors import MissingExtraError, translated

_INSTALL = "pip install 'samkd[serve]'; on a device without samkd: pip install starlette uvicorn python-multipart"


def require_libraries() -> None:
    """Raises MissingExtraError without Starlette, uvicorn or python-multipart."""
    with translated("--http", f"needs Starlette and uvicorn, which are not here; {_INSTALL}", MissingExtraError):
        import python_multipart  # noqa: F401
        import starlette.applications  # noqa: F401
        import uvicorn  # noqa: F401
