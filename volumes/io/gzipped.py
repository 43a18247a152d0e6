"""Reading gzip streams, checksum and length verified: through isal where it is installed (it inflates about three times
as fast), else through Python's own zlib.
"""

import gzip
import zlib

try:
    from isal.igzip import IGzipFile as GzipReader
    from isal.igzip_lib import IsalError as InflateError
except ImportError:
    from gzip import GzipFile as GzipReader
    from zlib import error as InflateError

__all__ = ["DAMAGE", "GzipReader"]

# What reading a damaged stream raises. isal's stub file takes the class for an instance.
DAMAGE: tuple[type[Exception], ...] = (gzip.BadGzipFile, EOFError, zlib.error, InflateError)  # type: ignore
