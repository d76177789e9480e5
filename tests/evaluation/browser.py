"""A real browser without a window: Chromium, told what to do through a pipe.

Nothing but Chromium itself is needed: it speaks the DevTools protocol on two file descriptors,
JSON messages that end with a zero byte.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from select import select
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

_SECONDS = 60.0
_ARGUMENTS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # which root has none of; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
)


def chromium() -> str | None:
    """Path of a Chromium, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page in a Chromium of its own; what goes wrong on it and what it asks for is kept.

    Attributes:
        errors: exceptions and messages of the page's console, and of the browser about it.
        requests: addresses that the page asked for, but those that hold their own data.
    """

    def __init__(self, width: int = 1280, height: int = 800, *, dark: bool = False) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._size, self._dark = (width, height), dark
        self._last, self._session, self._buffer = 0, {}, b""
        self._stack = ExitStack()

    def __enter__(self) -> "Browser":
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def open(self, page: Path) -> None:
        """Open a file, and wait until it is there."""
        self.call("Page.navigate", url=page.resolve().as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> Any:
        """Value of an expression of JavaScript on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """Text of each element as it is seen; empty where it is hidden."""
        chosen = f"[...document.querySelectorAll({json.dumps(selector)})]"
        return self.evaluate(f"{chosen}.map((found) => found.innerText.trim())")

    def click(self, selector: str) -> None:
        """Press and release the mouse in the middle of an element."""
        chosen = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{chosen}.scrollIntoView({{block: 'center'}})")
        box = self.evaluate(f"{chosen}.getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key."""
        of_key = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.call("Input.dispatchKeyEvent", **down, **of_key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **of_key)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write a PNG of the window, or of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol, and wait for its answer."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": arguments, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _start(self) -> None:
        profile = self._stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        theirs, self._commands = os.pipe()
        self._answers, ours = os.pipe()
        program = chromium()
        assert program is not None
        # Chromium reads commands from 3 and writes answers to 4.
        redirected = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{ours}', "bash"]
        process = self._stack.enter_context(
            subprocess.Popen(
                [*redirected, program, *_ARGUMENTS, f"--user-data-dir={profile}", "about:blank"],
                pass_fds=(theirs, ours),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "HOME": profile},
            )
        )
        self._stack.callback(process.kill)
        os.close(theirs)
        os.close(ours)
        self._stack.callback(os.close, self._commands)
        self._stack.callback(os.close, self._answers)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        width, height = self._size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", mobile=width < 600, **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self._dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select([self._answers], [], [], _SECONDS)[0]:
                raise RuntimeError(f"Chromium has said nothing for {_SECONDS:.0f} s")
            read = os.read(self._answers, 2**16)
            if not read:
                raise RuntimeError("Chromium has ended")
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        event: dict[str, Any] = json.loads(message)
        self._note(event.get("method"), event.get("params", {}))
        return event

    def _note(self, method: str | None, about: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(about["exceptionDetails"]["exception"]["description"])
        elif method == "Runtime.consoleAPICalled":
            self.errors.append(f"{about['type']}: {about['args']}")
        elif method == "Log.entryAdded":
            self.errors.append(about["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = about["request"]["url"]
            if not url.startswith("data:"):
                self.requests.append(url)
