"""Prepared arrays on disk: what is not as it was written is refused with exit 4, and what is missing is made anew."""

import json
import shutil
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest

from samkd.errors import IntegrityError
from samkd.training.prepared_files import has_arrays, read_arrays, write_arrays
from samkd.volumes.files import file_digest

PARTS = ("image", "affine", "labels")
ARRAYS = {
    "image": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4),
    "affine": np.eye(4),
    "labels": np.ones((2, 3, 4), np.uint8),
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "plan"
    write_arrays(folder, "case", ARRAYS)
    return folder


@pytest.mark.parametrize("array", [*ARRAYS.values(), np.asfortranarray(np.eye(5)[:3]), np.float32(2)])
def test_the_files_are_those_of_numpy(tmp_path, array):
    write_arrays(tmp_path, "case", {"image": np.asarray(array)})
    expected = BytesIO()
    np.save(expected, np.ascontiguousarray(array))
    assert (tmp_path / "case.image.npy").read_bytes() == expected.getvalue()


FULL_DISK = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from samkd.errors import OutputError
from samkd.training.prepared_files import write_arrays
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size, folder = int(sys.argv[1]), Path(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    write_arrays(folder, "case", {"image": np.ones((1, 15, 15, 15), np.float32)})
except OutputError as error:
    print("refused", error)
"""


@pytest.mark.parametrize("missing", [1, 100, 1000, 5000])
def test_a_disk_that_is_full_for_the_last_bytes_leaves_no_file(tmp_path, missing):
    """C's buffers are flushed when a file is closed, and what does not fit then is lost without an error."""
    size = 15**3 * 4 + 128 - missing
    process = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(size), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "refused" in process.stdout and "cannot be written" in process.stdout, process.stdout + process.stderr
    assert not list(tmp_path.rglob("*.npy")) and not list(tmp_path.rglob("*.json"))


def test_what_was_written_is_read(folder):
    assert has_arrays(folder, "case", PARTS)
    for part, array in read_arrays(folder, "case", PARTS).items():
        np.testing.assert_array_equal(array, ARRAYS[part])
        assert array.dtype == ARRAYS[part].dtype


def test_one_flipped_bit_anywhere_is_refused(folder):
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for position in range(len(content)):
            if content[position : position + 1].isspace():
                continue  # the line breaks between the sums say nothing
            damaged = bytearray(content)
            damaged[position] ^= 1 << position % 8
            path.write_bytes(damaged)
            with pytest.raises(IntegrityError, match=r"damaged: .*; delete the file, it is made anew") as refused:
                read_arrays(folder, "case", PARTS)
            assert refused.value.exit_code == 4 and str(folder) in str(refused.value)
        path.write_bytes(content)
    read_arrays(folder, "case", PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_a_file_that_is_gone_is_made_anew_and_so_is_a_case_of_an_earlier_release(folder, part):
    (folder / f"case.{part}.npy").unlink()
    assert not has_arrays(folder, "case", PARTS)
    write_arrays(folder, "case", ARRAYS)
    (folder / "case.sums.json").unlink()
    assert not has_arrays(folder, "case", PARTS)


def test_another_case_in_its_place_is_refused(folder):
    write_arrays(folder, "other", ARRAYS)
    write_arrays(folder.with_name("other plan"), "case", ARRAYS)
    for source in (folder / "other.sums.json", folder.with_name("other plan") / "case.sums.json"):
        shutil.copy(source, folder / "case.sums.json")
        with pytest.raises(IntegrityError, match="another case's"):
            read_arrays(folder, "case", PARTS)


def saved(array) -> bytes:
    stream = BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


HOSTILE = {
    "empty": lambda: b"",
    "cut": lambda: saved(ARRAYS["image"])[:-5],
    "half a header": lambda: saved(ARRAYS["image"])[:40],
    "text": lambda: b"no array",
    "objects": lambda: saved(np.array([{}, None], object)),
    "other type": lambda: saved(ARRAYS["image"].astype(np.float64)),
    "other axes": lambda: saved(ARRAYS["image"][0]),
    "another grid": lambda: saved(ARRAYS["image"][:, :1]),
    "announces much": lambda: saved(ARRAYS["image"]).replace(b"(1, 2, 3, 4), }", b"(9999, 9999, 9999, 4), }"),
}


@pytest.mark.parametrize("resummed", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_such_array_is_refused(folder, name, resummed):
    """Also where the sum is right: nothing is unpickled, and no library's own exception gets through."""
    path = folder / "case.image.npy"
    path.write_bytes(HOSTILE[name]())
    if resummed:
        sums = json.loads((folder / "case.sums.json").read_text())
        sums["sha256"]["image"] = file_digest(path)
        (folder / "case.sums.json").write_text(json.dumps(sums))
    with pytest.raises(IntegrityError, match="damaged"):
        read_arrays(folder, "case", PARTS)


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "{}", '{"case": 1}', '{"case": "plan/case", "sha256": []}', "[" * 10_000]
)
def test_sums_that_are_none_are_refused(folder, text):
    (folder / "case.sums.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"case\.sums\.json"):
        read_arrays(folder, "case", PARTS)
