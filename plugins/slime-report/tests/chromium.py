"""A headless Chromium for the tests of the page, driven over two pipes by the DevTools protocol: no port, no other package."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

FLAGS = [
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--force-color-profile=srgb",
        "--no-first-run",
    ),
    *("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
]
SECONDS = 60


def chromium() -> str | None:
    """Return the path of a Chromium, or None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One browser with one tab. Everything that the pages tell or ask for is kept, until the next `open`.

    Attributes:
        complaints: what pages wrote to the console, exceptions, and what the content policy refused.
        requests: the URLs that were asked for, besides the page itself.
    """

    def __init__(self, program: str, folder: Path) -> None:
        out, self._answers = os.pipe()
        self._orders, into = os.pipe()[::-1]
        # Chromium reads orders from its descriptor 3 and writes answers to 4.
        self._process = subprocess.Popen(
            [
                "bash",
                "-c",
                f'exec "$0" "$@" 3<&{into} 4>&{self._answers}',
                program,
                *FLAGS,
                f"--user-data-dir={folder}",
            ],
            pass_fds=(into, self._answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(into)
        os.close(self._answers)
        self._answers = out
        self._number = 0
        self._rest = b""
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self.requests: list[str] = []
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the browser."""
        with contextlib.suppress(OSError, TimeoutError):
            self._session = None
            self.call("Browser.close")
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._orders)
        os.close(self._answers)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the result of an order of the DevTools protocol."""
        self._number += 1
        order: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            order["sessionId"] = self._session
        os.write(self._orders, json.dumps(order).encode() + b"\0")
        while (message := self._message()).get("id") != self._number:
            pass
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        result: dict[str, Any] = message["result"]
        return result

    def _message(self) -> dict[str, Any]:
        until = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            if not select.select([self._answers], [], [], max(0, until - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium said nothing for {SECONDS} s")
            got = os.read(self._answers, 1 << 20)
            if not got:
                raise OSError("Chromium ended")
            self._rest += got
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._heed(message["method"], message["params"])
        return message

    def _heed(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.consoleAPICalled":
            self.complaints.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.complaints.append(str(params["entry"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        self._events.append({"method": method, **params})

    def open(self, page: Path, fragment: str = "") -> None:
        """Open a file and wait until it is loaded and has drawn itself."""
        self._events.clear()
        self.complaints.clear()
        self.requests.clear()
        self.call("Page.navigate", url="about:blank")  # so that another fragment of the same page is a new page, too
        self.requests.clear()
        self.call("Page.navigate", url=page.as_uri() + fragment)
        self.wait("document.readyState === 'complete' && document.documentElement.dataset.ready === 'yes'")
        self.requests.remove(page.as_uri())

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Wait until an expression is true in the page."""
        until = time.monotonic() + seconds
        while not self.eval(condition):
            if time.monotonic() > until:
                raise TimeoutError(f"not true after {seconds} s: {condition}; {self.complaints}")
            time.sleep(0.02)

    def eval(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript, as plain data; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys one after the other: names of keys such as "ArrowRight" or "Shift+Tab", or characters."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "PageUp": 33, "PageDown": 34, "End": 35, "Home": 36}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        for key in keys:
            shift, name = key.startswith("Shift+"), key.removeprefix("Shift+")
            common = {
                "key": name,
                "windowsVirtualKeyCode": codes.get(name, ord(name[0])),
                "modifiers": 8 if shift else 0,
            }
            text = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
            self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Put text into the focused field."""
        self.call("Input.insertText", text=text)

    def mouse(self, kind: str, x: float, y: float, button: str = "none") -> None:
        """Send one event of a mouse: mouseMoved, mousePressed or mouseReleased."""
        self.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1, buttons=int(button != "none")
        )

    def resize(self, width: int, height: int = 900, phone: bool = False) -> None:
        """Give the window a size in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    def prefer(self, scheme: str = "light", media: str = "screen", motion: str = "no-preference") -> None:
        """Choose light or dark, and screen or print."""
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": motion},
        ]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Write a picture of the page, or of the part in the window."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole, fromSurface=True)
        path.write_bytes(base64.b64decode(shot["data"]))
