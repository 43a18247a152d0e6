"""The names of uploads on the disk: none of the user's, and still those that belong together."""

from pathlib import Path, PurePosixPath

import pytest

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'samkd[serve]'")

from samkd.deploy.runtime.serve.http.names import OwnNames
from samkd.deploy.runtime.serve.http.refusals import Refusal
from samkd.volumes.io.scans import Source, group_channels


def test_channels_of_one_scan_stay_together_and_nothing_of_the_name_is_kept():
    names = OwnNames()
    given = ["Muster_0000.nii.gz", "b/Muster_0000.nii.gz", "Muster_0001.nii.gz", "b/Muster_0001.nii.gz", "Muster.NII"]
    own = [names.name(PurePosixPath(name)) for name in given]
    assert own == ["0_0000.nii.gz", "1_0000.nii.gz", "0_0001.nii.gz", "1_0001.nii.gz", "4.nii"]
    grouped = group_channels([Source(Path(name).name.split(".")[0], (Path(name),)) for name in own], channels=2)
    assert [len(scan.files) for scan in grouped] == [2, 2, 1]
    assert [names.name(PurePosixPath(name)) for name in ("Muster.PNG", "IM0001", "x.dcm")] == [
        "5.png",
        "6.dcm",
        "7.dcm",
    ]
    with pytest.raises(Refusal, match="comes twice"):
        names.name(PurePosixPath("Muster_0000.nii.gz"))


def test_messages_come_back_in_the_users_names():
    names = OwnNames()
    for number in range(12):
        names.name(PurePosixPath(f"a/Muster {number}.nii"))
    folder = Path("/spool/scans/.upload-1/files")
    text = names.restored(f"{folder}/1.nii: is not on the grid of 11.nii. Look into {folder}.", folder)
    assert text == "a/Muster 1.nii: is not on the grid of a/Muster 11.nii. Look into the upload."
