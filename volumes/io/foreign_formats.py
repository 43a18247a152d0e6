"""Formats that hold scans and are not read or written here, and the way out of each."""

from collections.abc import Sequence
from pathlib import Path

_NAMES = {
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
    ".hdr": "a two-file image",
    ".img": "a two-file image",
    ".mgh": "FreeSurfer",
    ".mgz": "FreeSurfer",
    ".mnc": "MINC",
    ".mif": "MRtrix",
}
_NO_FOLDERS = {*_NAMES, ".gz", ".bz2", ".zip", ".npy", ".npz", ".mat", ".h5", ".json", ".seg", ".stl", ".vtk", ".bmp"}
_BY_SIMPLEITK = (
    "pip install simpleitk; python -c \"import SimpleITK as s; s.WriteImage(s.ReadImage('{name}'), '{to}')\""
)
_BY_NIBABEL = "python -c \"import nibabel as n; n.Nifti1Image.from_image(n.load('{name}')).to_filename('{to}')\""


def is_foreign(path: Path) -> bool:
    """Whether a file's name says that it holds a scan in a format that is not read here."""
    return path.suffix.lower() in _NAMES


def is_named_like_a_file(path: Path) -> bool:
    """Whether a path that is to be written is named like a file of a kind that no mask is written as."""
    return path.suffix.lower() in _NO_FOLDERS and not path.is_dir()


def way_out(path: Path) -> str:
    """What a file of such a format is, and how to turn it into one that is read."""
    suffix, to = path.suffix.lower(), f"{path.stem}.nii.gz"
    start = f"{path}: is named like {_NAMES[suffix]}, which is not read; expected NIfTI (.nii, .nii.gz), DICOM or"
    if suffix in (".hdr", ".img"):
        if _is_nifti_pair(path):
            return f"{start} a picture. Make one NIfTI file of the two: {_BY_NIBABEL.format(name=path.name, to=to)}"
        return (
            f"{start} a picture. If it is Analyze, it does not say which side of the patient is left: export the scan "
            "again, as DICOM or NIfTI."
        )
    if suffix in (".mgh", ".mgz"):
        return f"{start} a picture. Convert it: {_BY_NIBABEL.format(name=path.name, to=to)}"
    if suffix == ".mif":
        return f"{start} a picture. Convert it: mrconvert {path.name} {to}"
    return (
        f"{start} a picture. Save it as NIfTI in 3D Slicer, or convert it: "
        f"{_BY_SIMPLEITK.format(name=path.name, to=to)}"
    )


def passed_over(folder: Path, files: Sequence[Path]) -> str:
    """A line that names how many files of such formats lie in a folder, with the way out of the first."""
    return f"{folder}: {len(files)} file(s) of formats that are not read. {way_out(files[0])}"


def _is_nifti_pair(path: Path) -> bool:
    try:
        with path.with_suffix(".hdr" if path.suffix.islower() else ".HDR").open("rb") as file:
            return file.read(348)[344:347] in (b"ni1", b"ni2")
    except OSError:
        return False
