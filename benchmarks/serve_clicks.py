"""What a user of the page waits for: the first mask of a scan, which is encoded then, and those of later boxes.

    python benchmarks/serve_clicks.py PACKAGE SCAN

PACKAGE takes boxes. Printed are the seconds of each answer, from the request to the last byte of the mask; the boxes
lie on the middle slices, a quarter of the picture wide, one more each time.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.http_server import Client, ServerProcess

BOXES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("scan", type=Path)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(options.package.absolute(), Path(folder)) as server,
    ):
        client = Client(server.port)
        (package,) = client.get("/api/packages").json
        (scan,) = client.upload({options.scan.name: options.scan.read_bytes()})
        width, height, depth = scan["shape"]
        boxes: list[list[int]] = []
        for number in range(BOXES):
            middle = depth // 2 + number
            boxes.append([width // 4, height // 4, middle, width // 2, height // 2, middle])
            prompts = {"space": "voxel", "classes": {package["classes"][0]["name"]: {"boxes": boxes}}}
            started = time.perf_counter()
            answer = client.post(f"/api/scans/{scan['id']}/prompts", {"package": package["id"], "prompts": prompts})
            seconds = time.perf_counter() - started
            assert answer.status == 200, answer.body
            print(f"mask {number + 1}: {seconds:.2f} s, {answer.headers['x-volumes-ml']}", flush=True)
        print(f"peak memory of the server: {server.peak_bytes() / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
