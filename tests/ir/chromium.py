"""A headless Chromium on the DevTools protocol, with no more of it than the tests of the page need."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 60.0  # seconds
_KEYS = {
    "Enter": ("Enter", 13, "\r"),
    " ": ("Space", 32, " "),
    "Escape": ("Escape", 27, ""),
    "/": ("Slash", 191, "/"),
}


def found() -> str | None:
    """Path of a browser: $CHROMIUM, or the first of `NAMES` on the path."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser():
    """A running browser; gives a function that opens a page in a tab of its own."""
    import websocket

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = (
            "--headless=new --no-first-run --disable-gpu --disable-dev-shm-usage --hide-scrollbars"
        )
        options += (
            " --disable-background-networking --disable-component-update --remote-debugging-port=0"
        )
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        command = [
            found(),
            *options.split(),
            *sandbox,
            "--remote-allow-origins=*",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port_file = Path(profile) / "DevToolsActivePort"
            until(
                lambda: (
                    process.poll() is not None
                    or (port_file.exists() and len(port_file.read_text().split()) == 2)
                )
            )
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with status {process.returncode}")
            port, path = port_file.read_text().split()
            socket = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=PATIENCE)
            try:
                yield Wire(socket)
            finally:
                socket.close()
        finally:
            process.terminate()
            process.wait(PATIENCE)


def until(condition, patience=PATIENCE):
    """Wait until `condition()` is true, and give what it gave."""
    end = time.monotonic() + patience
    while not (answer := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return answer


class Wire:
    """The connection: commands out, answers and events in."""

    def __init__(self, socket):
        self.socket, self.number, self.events = socket, 0, []

    def send(self, method, session=None, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        self.socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def open(self, address, *, dark=False, width=1440, height=900):
        """A new tab that has loaded `address`."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session, target)
        for domain in ("Page", "Runtime", "Network", "Log"):
            tab.send(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        tab.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.send("Emulation.setEmulatedMedia", features=[scheme])
        tab.send("Page.navigate", url=address)
        until(
            lambda: tab.run("document.readyState === 'complete' && location.href !== 'about:blank'")
        )
        return tab


class Tab:
    """One page: what it says, and a mouse and keyboard for it."""

    def __init__(self, wire, session, target):
        self.wire, self.session, self.target = wire, session, target

    def send(self, method, **params):
        return self.wire.send(method, self.session, **params)

    def run(self, expression):
        """Value of a JavaScript expression."""
        answer = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, selector):
        return self.run(
            f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText.replace(/\\s+/g, ' ').trim())"
        )

    def wait(self, expression):
        return until(lambda: self.run(expression))

    def click(self, selector, index=0):
        self.settle()
        at = f"document.querySelectorAll({json.dumps(selector)})[{index}].getBoundingClientRect()"
        box = self.run(
            f"(() => {{ const b = {at}; return [b.x + Math.min(b.width, 60) / 2, b.y + b.height / 2]; }})()"
        )
        self.mouse("mouseMoved", *box)
        self.mouse("mousePressed", *box, button="left", clickCount=1)
        self.mouse("mouseReleased", *box, button="left", clickCount=1)
        self.settle()

    def mouse(self, kind, x, y, **more):
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def press(self, *keys):
        for key in keys:
            code, number, text = _KEYS.get(key, (key, 0, ""))
            self.send(
                "Input.dispatchKeyEvent",
                type="keyDown",
                key=key,
                code=code,
                windowsVirtualKeyCode=number,
                text=text,
            )
            self.send(
                "Input.dispatchKeyEvent",
                type="keyUp",
                key=key,
                code=code,
                windowsVirtualKeyCode=number,
            )
        self.settle()

    def type(self, text):
        self.send("Input.insertText", text=text)
        self.settle()

    def settle(self):
        """Wait for two frames, so that what was asked for is drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def shot(self, path):
        path.write_bytes(
            base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        )

    def complaints(self):
        """What the page logged, threw or was refused."""
        self.settle()
        mine = [e for e in self.wire.events if e.get("sessionId") == self.session]
        logged = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
        return [e["params"] for e in mine if e["method"] in logged]

    def requests(self):
        """Addresses that the page asked for."""
        self.settle()
        mine = [e for e in self.wire.events if e.get("sessionId") == self.session]
        return [
            e["params"]["request"]["url"]
            for e in mine
            if e["method"] == "Network.requestWillBeSent"
        ]

    def close(self):
        self.wire.send("Target.closeTarget", targetId=self.target)
