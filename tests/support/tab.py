"""One tab of a headless Chromium, driven over the DevTools protocol: real keys, wheel and clicks, pictures, console."""

import base64
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

_SECONDS = 60
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")
_CODES = {"ArrowUp": 38, "ArrowDown": 40, "ArrowLeft": 37, "ArrowRight": 39, "PageUp": 33, "PageDown": 34}
_CODES |= {"Home": 36, "End": 35, "Tab": 9, "Enter": 13, " ": 32}
# Chromium reads messages from descriptor 3 and writes to 4, each ended by a zero byte.
_START = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(pipes[0], 3), os.dup2(pipes[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_TEXTS = {"Enter": "\r"}


@contextmanager
def open_tab(browser, page_path, scratch, *, width=1280, height=900, is_dark=False):
    """A `Tab` that shows a page file; Chromium is ended afterwards.

    Args:
        scratch: a folder for its profile.
    """
    for_browser, own_end = os.pipe()
    own_start, from_browser = os.pipe()
    command = [browser, *_OPTIONS, f"--user-data-dir={scratch / 'profile'}", f"--window-size={width},{height}"]
    process = subprocess.Popen(
        [sys.executable, "-c", _START, str(for_browser), str(from_browser), *command, "about:blank"],
        pass_fds=(for_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(for_browser)
    os.close(from_browser)
    try:
        tab = Tab(own_end, own_start)
        tab.open(page_path, width, height, is_dark=is_dark)
        yield tab
    finally:
        process.terminate()
        process.wait(_SECONDS)
        os.close(own_end)
        os.close(own_start)


class Tab:
    """A page and what its console said."""

    def __init__(self, writes, reads):
        os.set_blocking(reads, False)
        self._writes, self._reads, self._buffer, self._number, self._session = writes, reads, b"", 0, None
        self.console, self._loaded = [], False

    def open(self, path, width, height, *, is_dark):
        """Loads a file at a width, as a phone below 500 pixels."""
        targets = self.send("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.send("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=path.absolute().as_uri())
        self._wait(lambda: self._loaded)

    def reload(self):
        """Loads the page again."""
        self._loaded = False
        self.send("Page.reload")
        self._wait(lambda: self._loaded)

    def read(self):
        """The HTML of the document as it is, also where scripts are disabled."""
        root = self.send("DOM.getDocument", depth=0)["root"]
        return self.send("DOM.getOuterHTML", nodeId=root["nodeId"])["outerHTML"]

    def send(self, method, **parameters):
        """The answer to one command of the protocol."""
        self._number += 1
        number, message = self._number, {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        answers = {}
        self._wait(lambda: number in answers, answers)
        assert "error" not in answers[number], answers[number]
        return answers[number]["result"]

    def run(self, script):
        """The value (JSON) of an expression, a promise awaited; an error fails the test."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, condition):
        """Waits until an expression is true."""
        end = time.monotonic() + _SECONDS
        while not self.run(f"!!({condition})"):
            assert time.monotonic() < end, f"waited in vain for {condition}"
            time.sleep(0.02)

    def wait_for_rest(self):
        """Waits until the page has not moved for a second: later turns of the wheel are a gesture of their own."""
        end, still_since, at = time.monotonic() + _SECONDS, time.monotonic(), None
        while time.monotonic() - still_since < 1:
            assert time.monotonic() < end, "the page does not come to rest"
            time.sleep(0.05)
            if (now := self.run("scrollY")) != at:
                at, still_since = now, time.monotonic()

    def follow_to_slice(self, link):
        """Follows a link to a slice by keyboard: its study shows the slice, has the focus, and Home scrolls it.

        Args:
            link: an expression of the link.
        """
        wanted, anchor = self.run(f"[{link}.dataset.slice, {link}.getAttribute('href').slice(1)]")
        self.run(f"{link}.focus()")
        self.press("Enter")
        self.wait_for(f"document.getElementById('{anchor}').dataset.drawn === '{wanted}'")
        self.wait_for("document.activeElement.matches('.panes')")
        self.press("Home")
        assert self.run(f"document.getElementById('{anchor}').dataset.drawn") == "0"

    def press(self, key, *, shift=False):
        """A key of the keyboard, pressed and released where the focus is."""
        code = _CODES.get(key, ord(key.upper()[0]))
        event = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        text = _TEXTS.get(key, key if len(key) == 1 else "")
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **event)
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def click(self, selector):
        """A click of the mouse into the middle of the first element, scrolled into view."""
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def wheel(self, selector, down):
        """The wheel over the first element, by pixels; negative is up."""
        x, y = self._middle(selector)
        self.send("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=down)

    def picture(self, *, whole=False):
        """The visible part, or the whole page, as PNG bytes."""
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(found["data"])

    def _middle(self, selector):
        place = self.run(
            f"(() => {{ const part = document.querySelector({json.dumps(selector)});"
            "part.scrollIntoView({ block: 'center', behavior: 'instant' });"
            "const box = part.getBoundingClientRect();"
            "return [box.left + box.width / 2, box.top + box.height / 2]; })()"
        )
        return place

    def _wait(self, is_done, answers=None):
        end = time.monotonic() + _SECONDS
        while True:
            *messages, self._buffer = self._buffer.split(b"\0")
            for message in map(json.loads, messages):
                self._take(message, {} if answers is None else answers)
            if is_done():
                return
            assert time.monotonic() < end, "Chromium did not answer"
            try:
                self._buffer += os.read(self._reads, 1 << 20)
            except BlockingIOError:
                time.sleep(0.005)

    def _take(self, message, answers):
        method, parameters = message.get("method"), message.get("params", {})
        if "id" in message:
            answers[message["id"]] = message
        elif method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(one.get("value")) for one in parameters["args"]))
        elif method == "Runtime.exceptionThrown":
            self.console.append(parameters["exceptionDetails"]["text"])
        elif method == "Log.entryAdded":
            self.console.append(parameters["entry"]["text"])
