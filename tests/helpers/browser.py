"""Chromium without a window, spoken to over two pipes (the DevTools protocol), so that no package is needed."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_SECONDS = 60
_KEY_CODES = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Page:
    """An open page: what it logged, which addresses it asked for, and what a script in it says."""

    def __init__(self, commands: int, answers: int):
        self._commands, self._answers = commands, answers
        self._number, self._rest, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []

    def open(self, address: Path | str, *, width: int, height: int = 900) -> None:
        """Load a file or an address in a window of that many pixels, and wait until everything of it is there."""
        if not self._session:
            target = self.send("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.events.clear()
        self.send("Page.navigate", url=address.resolve().as_uri() if isinstance(address, Path) else address)
        self._wait_for("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, also in a page that allows no script of its own."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_until(self, expression: str) -> Any:
        """Wait until a JavaScript expression is true, and return its value."""
        end = time.monotonic() + _SECONDS
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"{expression} is {value} after {_SECONDS} seconds"
            time.sleep(0.05)
        return value

    def drop(self, *paths: Path, x: float, y: float) -> None:
        """Drop files or folders of this machine onto a place in the window, as a file manager does."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def drag(self, *places: tuple[float, float]) -> None:
        """Press the mouse at the first place in the window, move it over the others, and release it at the last."""
        held = {"button": "left", "buttons": 1, "clickCount": 1}
        (x, y), (end_x, end_y) = places[0], places[-1]
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.send("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **held)
        for to_x, to_y in places[1:]:
            self.send("Input.dispatchMouseEvent", type="mouseMoved", x=to_x, y=to_y, button="left", buttons=1)
        self.send("Input.dispatchMouseEvent", type="mouseReleased", x=end_x, y=end_y, button="left", clickCount=1)

    def touch(self, *places: tuple[float, float]) -> None:
        """Put a finger on the first place in the window, move it over the others, and lift it."""
        for kind, (x, y) in zip(("touchStart", *["touchMove"] * len(places[1:])), places, strict=True):
            self.send("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def wheel(self, x: float, y: float, *, down: int, modifiers: int = 0) -> None:
        """Turn the mouse wheel at a place in the window by so many pixels; Ctrl is the modifier 2."""
        place = {"x": x, "y": y, "deltaX": 0, "deltaY": down}
        self.send("Input.dispatchMouseEvent", type="mouseWheel", modifiers=modifiers, **place)

    def click(self, selector: str) -> None:
        """Click with the mouse on the middle of an element, after scrolling to it."""
        box = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{box}.scrollIntoView({{block: 'center'}})")
        left, top, width, height = self.evaluate(
            f"(({{left, top, width, height}}) => [left, top, width, height])({box}.getBoundingClientRect())"
        )
        self.drag(*[(left + width / 2, top + height / 2)] * 2)

    def press(self, key: str) -> None:
        """Press a key by its name in the DOM, for example "Enter" or "?"."""
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        code = {"windowsVirtualKeyCode": _KEY_CODES[key]} if key in _KEY_CODES else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **code, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def requests(self) -> list[str]:
        """The addresses that the page asked for since it was opened."""
        return [each["params"]["request"]["url"] for each in self._of("Network.requestWillBeSent")]

    def complaints(self) -> list[str]:
        """What stands in the console since the page was opened: messages, errors, refused contents."""
        methods = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(each["params"]) for method in methods for each in self._of(method)]

    def screenshot(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: Path) -> None:
        """Write the page as it is printed on A4."""
        printed = self.send("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(printed["data"]))

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        self._number += 1
        call = {"id": self._number, "method": method, "params": parameters}
        call |= {"sessionId": self._session} if self._session else {}
        os.write(self._commands, json.dumps(call).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def _of(self, method: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("method") == method]

    def _wait_for(self, method: str) -> None:
        end = time.monotonic() + _SECONDS
        while not self._of(method):
            assert time.monotonic() < end, f"no {method} in {_SECONDS} seconds"
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._answers, 1 << 20)
            assert part, "Chromium has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser(profile: Path, *, webgl: bool = False) -> Iterator[Page]:
    """A page in a new Chromium whose profile is written into the folder `profile`; WebGL is drawn by the CPU."""
    assert CHROMIUM is not None
    (their_in, ours_out), (ours_in, their_out) = os.pipe(), os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-dev-shm-usage", "--no-first-run"]
    options += (
        ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"] if webgl else ["--disable-gpu"]
    )
    options += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"]
    # The protocol's two pipes are the files 3 and 4 of the process.
    shell = f'exec "$0" "$@" 3<&{their_in} 4>&{their_out}'
    command = ["sh", "-c", shell, CHROMIUM, *options, f"--user-data-dir={profile}"]
    if their_in > 9 or their_out > 9:  # sh knows one digit only
        command[0] = "bash"
    process = subprocess.Popen(
        command, pass_fds=(their_in, their_out), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for each in (their_in, their_out):
        os.close(each)
    try:
        yield Page(ours_out, ours_in)
    finally:
        with suppress(OSError):
            os.close(ours_out)
        process.terminate()
        process.wait(timeout=30)
        os.close(ours_in)
