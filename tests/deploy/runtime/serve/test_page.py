"""The page in Chromium: a scan is dropped, segmented, clicked into shape, looked at pixel by pixel, and saved."""

import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import CHROMIUM, browser
from helpers.packages import make_scan, reseal
from helpers.paths import ROOT

pytest.importorskip("starlette", reason="the page's server is not installed: pip install 'samkd[serve]'")

from helpers.dicom_series import write_series
from helpers.http_server import Server, wait

from samkd.deploy.runtime.report import volumes_ml
from samkd.volumes.geometry import Volume, reorient
from samkd.volumes.io.nifti import read_labels, read_scan, write_scan
from samkd.volumes.prompts import ClassPrompts, ScanPrompts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: chromium)"),
    pytest.mark.skipif(
        not (ROOT / "deploy/runtime/serve/page/vendor/niivue.js").is_file(), reason="the viewer is not built: make web"
    ),
]

COLOURS = {1: (230, 159, 0), 2: (86, 180, 233)}
LOW, HIGH = -160, 240  # the window for soft tissue
WIDTHS = (1280, 390)
PLANES = ("axial", "coronal", "sagittal")


@pytest.fixture(scope="module")
def server(built, built_promptable, tmp_path_factory):
    """Of three packages; the second is said to take boxes as well, the third to find nothing without a prompt."""
    promptable = shutil.copytree(built_promptable, tmp_path_factory.mktemp("promptable") / "student")
    prompts = json.loads((promptable / "manifest.json").read_text())["prompts"]
    reseal(promptable, prompts={**prompts, "kinds": [*prompts["kinds"], "box"]})
    needy = shutil.copytree(promptable, tmp_path_factory.mktemp("needy") / "student")
    kinds = [kind for kind in prompts["kinds"] if kind != "outside point"]
    reseal(needy, prompts={**prompts, "kinds": [*kinds, "box"], "required": True})
    with Server([built, promptable, needy], tmp_path_factory.mktemp("spool")) as running:
        yield running


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile"), webgl=True) as page:
        yield page


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "abdomen.nii.gz"
    write_scan(path, make_scan(3))
    return path


class Bedside:
    """The page in the browser; what it holds and draws is read through its own modules."""

    def __init__(self, chromium, server):
        self.chromium, self.url = chromium, f"http://127.0.0.1:{server.port}/"

    def open(self, width: int) -> None:
        self.width = width
        self.chromium.open(self.url, width=width, height=500)
        self.chromium.wait_until("document.querySelector('#packages input') !== null")

    def state(self, expression: str):
        """The value of an expression of `page`, the state that main.js exports, and `viewer`."""
        return self.chromium.evaluate(
            f"import('/page/main.js').then(async ({{page}}) => {{ const viewer = page.viewer; return {expression}; }})"
        )

    def wait(self, expression: str):
        wait(lambda: self.state(expression))

    def drop(self, *paths: Path) -> None:
        """Drop a scan, and wait for its images."""
        self.chromium.drop(*paths, x=100, y=150)
        self.wait("page.scan !== null && viewer?.scan !== null && !document.getElementById('view-bar').hidden")

    def choose(self, group: str, index: int) -> None:
        self.chromium.click(f"#{group} :nth-child({index + 1}) > label, #{group} > label:nth-child({index + 1})")

    def segment(self) -> None:
        self.chromium.click("#segment")
        self.wait("page.result !== null && (viewer === null || viewer.mask !== null)")

    def pixel(self, voxel, plane: str) -> list[int]:
        """Red, green and blue at a voxel (i, j, k) of the file, on a plane through it."""
        return self.state(
            f"(viewer.nv.opts.crosshairWidth = 0, viewer.moveToVoxel({list(voxel)}),"
            f"(([x, y], gl, dpr) => {{ const rgba = new Uint8Array(4);"
            f"gl.readPixels(x * dpr, gl.canvas.height - y * dpr, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, rgba);"
            f"return [...rgba.slice(0, 3)]; }})(viewer.placeOf(viewer.crosshair, "
            f"viewer.tiles.find((tile) => tile.plane === '{plane}')), viewer.nv.gl, viewer.nv.uiData.dpr))"
        )

    def place(self, voxel, plane: str) -> tuple[float, float]:
        """Where in the window a voxel lies, its slice being shown."""
        self.chromium.evaluate("document.getElementById('images').scrollIntoView({block: 'end'})")
        x, y = self.state(
            f"(viewer.moveToVoxel({list(voxel)}), (([x, y], {{left, top}}) => [left + x, top + y])("
            f"viewer.placeOf(viewer.crosshair, viewer.tiles.find((tile) => tile.plane === '{plane}')), "
            f"document.getElementById('images').getBoundingClientRect()))"
        )
        return x, y

    def drag(self, plane: str, *voxels: tuple[int, int, int]) -> None:
        """Drag the mouse over voxels of a slice, or click on one; on a phone, a finger."""
        places = [self.place(voxel, plane) for voxel in voxels]
        if self.width < 600:
            self.chromium.touch(*places)
        else:
            self.chromium.drag(places[0], *places[1:] or places)

    def prompted(self, folder: Path) -> np.ndarray:
        """The labels [D, H, W] of the prompts that hold, when they are there."""
        self.wait("page.result !== null && document.getElementById('prompt-state').textContent === ''")
        content = bytes(self.state("[...new Uint8Array(await page.result.blob.arrayBuffer())]"))
        (folder / "prompted.nii.gz").write_bytes(content)
        return read_labels(folder / "prompted.nii.gz")[0]

    def save(self, label: str, folder: Path) -> Path:
        """Save what the button of that label saves."""
        self.chromium.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        before = set(folder.iterdir())
        index = self.chromium.evaluate(
            f"[...document.querySelectorAll('#saves button')].findIndex((each) => each.textContent === '{label}') + 1"
        )
        self.chromium.click(f"#saves :nth-child({index})")
        wait(lambda: [path for path in set(folder.iterdir()) - before if path.suffix != ".crdownload"])
        (path,) = (path for path in set(folder.iterdir()) - before if path.suffix != ".crdownload")
        return path

    def text(self, selector: str) -> list[str]:
        return self.chromium.evaluate(f"[...document.querySelectorAll('{selector}')].map((each) => each.textContent)")

    def require_quiet(self) -> None:
        """Nothing was asked of anybody but the server, and the console is empty."""
        outside = [url for url in self.chromium.requests() if not url.startswith((self.url, "data:", "blob:"))]
        assert outside == [] and self.chromium.complaints() == []


@pytest.fixture
def bedside(chromium, server):
    return Bedside(chromium, server)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_scan_is_dropped_segmented_coloured_measured_and_saved(bedside, built, scan, tmp_path, width):
    bedside.open(width)
    bedside.drop(scan)
    bedside.segment()
    command = [sys.executable, str(built / "runtime.pyz"), "predict", str(scan), "-o", str(tmp_path / "mask.nii.gz")]
    subprocess.run(command, check=True, capture_output=True)
    labels, geometry = read_labels(tmp_path / "mask.nii.gz")
    intensity = read_scan(scan).array[0]
    for plane in PLANES if width > 600 else ("axial",):
        for value, colour in COLOURS.items():
            voxel = _deepest(labels == value)[::-1]
            grey = 255 * (intensity[tuple(voxel[::-1])] - LOW) / (HIGH - LOW)
            assert np.abs(np.array(bedside.pixel(voxel, plane)) - (np.array(colour) + grey) / 2).max() < 12, plane
    bedside.chromium.click("#organs tr:nth-child(1) input")
    voxel = _deepest(labels == 1)[::-1]
    red, green, blue = bedside.pixel(voxel, "axial")
    assert red == green == blue and abs(red - 255 * (intensity[tuple(voxel[::-1])] - LOW) / (HIGH - LOW)) < 12, "hidden"
    red, green, blue = bedside.pixel((2, 2, 9), "axial")
    assert red == green == blue and abs(red - 255 * (intensity[9, 2, 2] - LOW) / (HIGH - LOW)) < 25
    volumes = volumes_ml(labels, geometry, {0: "background", 1: "liver", 2: "left kidney"})
    shown = dict(zip(bedside.text("#organs .link"), bedside.text("#organs .number"), strict=True))
    assert {name: float(ml) for name, ml in shown.items()} == {name: float(f"{ml:.2g}") for name, ml in volumes.items()}
    assert bedside.text("#saves button") == ["NIfTI", "Report"]
    saved = bedside.save("NIfTI", tmp_path)
    assert saved.name == "abdomen_mask.nii.gz" and saved.read_bytes() == (tmp_path / "mask.nii.gz").read_bytes()
    assert json.loads(bedside.save("Report", tmp_path).read_text())["volumes_ml"] == volumes
    assert bedside.chromium.evaluate("document.documentElement.scrollWidth") <= width
    bedside.require_quiet()


def _deepest(inside: np.ndarray) -> list[int]:
    """The voxel nearest to the middle of a body."""
    places = np.argwhere(inside)
    return places[np.argmin(((places - places.mean(0)) ** 2).sum(1))].tolist()


@pytest.mark.parametrize("width", WIDTHS)
def test_clicks_and_boxes_change_the_mask_as_the_same_prompts_do_without_a_page(bedside, server, tmp_path, width):
    """On a scan that is stored in another order, so that no axis of the page is one of the file."""
    volume = make_scan(4)
    stored = volume.geometry.oriented("RIP")
    path = tmp_path / "turned.nii.gz"
    write_scan(path, Volume(np.ascontiguousarray(reorient(volume.array, volume.geometry, stored)), stored))
    package = list(server.packages.values())[1]
    session = package.session(package.preprocess(read_scan(path)), stored)
    bedside.open(width)
    bedside.drop(path)
    bedside.choose("packages", 1)
    assert bedside.state("page.result") is None, "nothing is run before the first prompt"
    bedside.choose("tools", 2)
    bedside.drag("axial", (12, 9, 14))
    point = bedside.state("page.history.current[0].voxel")
    assert np.abs(np.array(point) - (12, 9, 14)).max() < 0.6
    clicked = session.labels(ScanPrompts({1: ClassPrompts(((*point, 1),))}, "voxel"))
    assert np.array_equal(bedside.prompted(tmp_path), clicked)
    bedside.chromium.evaluate("document.getElementById('prompt-class').value = 2")
    bedside.choose("tools", 4)
    bedside.drag("axial", (6, 9, 8), (15, 9, 20))
    box = bedside.state("page.history.current[1].voxels")
    assert np.abs(np.array(box) - (6, 9, 8, 15, 9, 20)).max() <= 1, box
    prompts = {1: ClassPrompts(((*point, 1),)), 2: ClassPrompts(boxes=(tuple(box),))}
    both = session.labels(ScanPrompts(prompts, "voxel"))
    assert np.array_equal(bedside.prompted(tmp_path), both) and not np.array_equal(both, clicked)
    bedside.chromium.click("#organs tr:nth-child(2) .link")
    i, j, k = (round(index) for index in bedside.state("viewer.voxelOf(viewer.crosshair)"))
    assert both[k, j, i] == 2, "a structure's name leads to it"
    bedside.chromium.click("#prompt-undo")
    assert np.array_equal(bedside.prompted(tmp_path), clicked)
    bedside.chromium.click("#prompt-clear")
    bedside.wait("page.result === null && viewer.mask === null")
    bedside.require_quiet()


def test_slices_turn_with_the_wheel_and_grey_levels_with_presets_and_by_dragging(bedside, scan):
    bedside.open(1280)
    bedside.drop(scan)
    assert bedside.text("#window-now") == ["Window 400, level 40"]
    x, y = bedside.place((15, 13, 9), "axial")
    for down in (-100, -100, 100):
        bedside.chromium.wheel(x, y, down=down)
    bedside.wait("viewer.slice('axial') !== 9")
    assert bedside.state("Math.abs(viewer.slice('axial') - 9)") == 1
    assert bedside.state("['coronal', 'sagittal'].map((plane) => viewer.slice(plane))") == [13, 15]
    bedside.chromium.wheel(x, y, down=-100, modifiers=2)
    bedside.wait("viewer.nv.scene.pan2Dxyzmm[3] > 1.05")
    bedside.chromium.click("#windows button:nth-child(2)")
    assert bedside.text("#window-now") == ["Window 1500, level -600"]
    bedside.choose("tools", 1)
    bedside.drag("axial", (10, 10, 9), (20, 15, 9))
    assert bedside.text("#window-now") != ["Window 1500, level -600"]
    bedside.choose("views", 4)
    bedside.wait("viewer.view === '3d' && viewer.tiles.length === 0")
    bedside.require_quiet()


def test_a_package_that_needs_prompts_runs_nothing_before_the_first_and_stays_usable_after_a_refusal(bedside, scan):
    bedside.open(390)
    bedside.drop(scan)
    bedside.choose("packages", 2)
    assert bedside.chromium.evaluate("document.getElementById('segment').hidden")
    assert bedside.text("#run-hint") == ["Show what you mean in the images: click on it, or draw a box around it."]
    assert bedside.state("[page.result, page.job, page.session]") == [None, None, None]
    bedside.drag("axial", (10, 12, 9))
    bedside.wait("page.result !== null && document.getElementById('prompt-state').textContent === ''")
    first = bedside.state("page.result.volumes")
    bedside.choose("tools", 3)
    bedside.drag("axial", (6, 8, 9), (14, 16, 9))
    bedside.chromium.wait_until("!document.getElementById('alarm').hidden")
    assert "a point beside a box" in bedside.text("#alarm-text")[0]
    assert bedside.state("page.history.current.length") == 1, "what was refused is taken back"
    assert bedside.state("page.result.volumes") == first


def test_a_dicom_folder_is_dropped_shown_as_text_and_saved_as_dicom_seg_clicked_or_not(bedside, tmp_path):
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    write_series(folder, (make_scan(5).array[0] + 1024).astype(np.int16))
    bedside.open(1280)
    bedside.drop(folder)
    assert bedside.state("[page.scan.modality, page.scan.dicom, page.scan.files]") == ["CT", True, 19]
    assert bedside.chromium.evaluate("document.querySelectorAll('main img').length") == 0
    bedside.segment()
    assert bedside.text("#saves button") == ["NIfTI", "DICOM-SEG", "Report"]
    automatic = bedside.save("DICOM-SEG", tmp_path).read_bytes()
    bedside.choose("packages", 1)
    bedside.choose("tools", 2)
    bedside.drag("axial", (12, 14, 9))
    bedside.wait("page.result?.prompts != null")
    (tmp_path / "clicked").mkdir()
    clicked = bedside.save("DICOM-SEG", tmp_path / "clicked").read_bytes()
    assert automatic[128:132] == clicked[128:132] == b"DICM" and automatic != clicked
    bedside.require_quiet()


def test_the_keyboard_alone_chooses_moves_prompts_and_lists_its_keys(bedside, scan):
    page = bedside.chromium
    bedside.open(1280)
    bedside.drop(scan)
    stops = []
    while "canvas" not in stops:
        page.press("Tab")
        stops.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
        assert len(stops) < 30, stops
        if stops[-1] == "package":
            page.press("ArrowDown")
            page.wait_until("document.activeElement.checked && !document.getElementById('prompt-bar').hidden")
    assert [
        stop for stop in stops if stop in ("pick-files", "pick-folder", "scan", "package", "segment", "views", "tools")
    ] == ["pick-files", "pick-folder", "scan", "package", "segment", "views", "tools"]
    page.press("?")
    assert page.evaluate("document.getElementById('help').open") and "Undo a prompt" in bedside.text("#shortcuts dd")
    page.press("?")
    slices = f"{list(PLANES)}.map((plane) => viewer.slice(plane))"
    before = bedside.state(slices)
    for key in ("PageUp", "ArrowUp", "ArrowLeft"):
        page.press(key)
    moved = np.array(bedside.state(slices)) - before
    assert moved.tolist() == [1, 1, 1], "up is to the front, and the patient's right is on the left"
    for key in ("i", "Enter", "b", "Enter", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
        page.press(key)
    assert bedside.state("page.history.current.map(({kind}) => kind)") == ["point", "box"]
    bedside.wait("page.result?.prompts != null")
    page.press("z")
    page.press("z")
    bedside.wait("page.result === null")
    bedside.require_quiet()


def test_a_scan_that_is_refused_a_job_that_is_cancelled_and_a_scan_that_is_deleted(bedside, server, scan, tmp_path):
    page = bedside.chromium
    bedside.open(390)
    (tmp_path / "broken.nii.gz").write_bytes(b"not a scan")
    page.drop(tmp_path / "broken.nii.gz", x=100, y=150)
    page.wait_until("!document.getElementById('alarm').hidden")
    assert "broken.nii.gz" in bedside.text("#alarm-text")[0]
    bedside.drop(scan)
    assert page.evaluate("document.getElementById('alarm').hidden")
    released = threading.Event()
    server.worker.call(lambda: released.wait(60))
    page.click("#segment")
    page.wait_until("!document.getElementById('progress').hidden")
    assert bedside.text("#job-text") == ["Waiting"]
    page.click("#job-cancel")
    page.wait_until("document.getElementById('progress').hidden && !document.getElementById('segment').disabled")
    released.set()
    bedside.segment()
    assert re.fullmatch(r"Deleted at \d\d:\d\d", bedside.text("#scans .row .quiet")[0])
    page.click("#scans button")
    bedside.wait("page.scan === null && viewer.scan === null && page.result === null")
    assert server.door._scans.ids() == [] or bedside.text("#scans li") == []


def test_without_its_viewer_the_page_still_segments_measures_and_saves(bedside, scan, tmp_path):
    page = bedside.chromium
    page.send("Network.setBlockedURLs", urls=["*/vendor/niivue.js"])
    try:
        bedside.open(390)
        page.drop(scan, x=100, y=150)
        bedside.wait("page.scan !== null")
        assert "make web" in bedside.text("#no-viewer")[0]
        bedside.segment()
        assert all(float(ml) > 0 for ml in bedside.text("#organs .number"))
        assert read_labels(bedside.save("NIfTI", tmp_path))[0].max() == 2
    finally:
        page.send("Network.setBlockedURLs", urls=[])


def test_prompts_are_undone_redone_cleared_and_a_box_takes_the_place_of_one_on_its_slice(bedside):
    box = {"kind": "box", "index": 1, "plane": "axial", "through": 2}
    steps = [
        "h.add({kind: 'point', index: 2, inside: false, voxel: [1, 2, 3]})",
        f"h.add({{...{json.dumps(box)}, voxels: [0, 0, 4, 9, 9, 4]}})",
        f"h.add({{...{json.dumps(box)}, voxels: [20, 20, 5, 29, 29, 5]}})",
        f"h.add({{...{json.dumps(box)}, voxels: [20, 20, 4, 29, 29, 4]}})",
        "h.clear()",
        *("h.undo()", "h.undo()", "h.redo()", "h.undo()", "h.undo()", "h.undo()", "h.undo()", "h.undo()"),
    ]
    bedside.open(1280)
    states = bedside.chromium.evaluate(
        "import('/page/prompts.js').then(({PromptHistory}) => { const h = new PromptHistory(), names = "
        "new Map([[1, 'liver'], [2, 'aorta']]); return ["
        + ", ".join(f"({step}, h.json(names)?.classes ?? null)" for step in steps)
        + "]; })"
    )
    point = {"aorta": {"points": [[1, 2, 3, 0]]}}
    first, second, third = [0, 0, 4, 9, 9, 4], [20, 20, 5, 29, 29, 5], [20, 20, 4, 29, 29, 4]
    one = {**point, "liver": {"boxes": [first]}}
    two = {**point, "liver": {"boxes": [first, second]}}
    replaced = {**point, "liver": {"boxes": [second, third]}}
    assert states == [point, one, two, replaced, None, replaced, two, replaced, two, one, point, None, None]
