# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A headless Chromium, spoken to over a pipe in its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/).

Selenium would want a driver and a port; the pipe wants neither. Messages are JSON, each ends with a NUL; Chromium reads them from file descriptor 3 and answers on 4.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

PROGRAM = shutil.which("chromium")
_PATIENCE = 60.0
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
)


class Browser:
    """One tab. What it should not do is written down: script errors, refusals by the page's policy, requests."""

    def __init__(self) -> None:
        assert PROGRAM
        self._folder = tempfile.mkdtemp(prefix="fleetclean-browser-")
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # The shell puts them where Chromium looks for them; a descriptor of ours may be 3 or 4 already.
        command = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._log = open(Path(self._folder, "log"), "w+b")
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", PROGRAM, *_OPTIONS, f"--user-data-dir={self._folder}/data", "about:blank"],
            pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            start_new_session=True, env={**os.environ, "HOME": self._folder},
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest, self._number, self._session = b"", 0, ""
        self.events: List[Dict[str, Any]] = []
        try:
            target = next(entry for entry in self.call("Target.getTargets")["targetInfos"] if entry["type"] == "page")
            self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_about: object) -> None:
        self.close()

    def close(self) -> None:
        """End Chromium and all of its processes, and take its folder away."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        for descriptor in (self._in, self._out):
            os.close(descriptor)
        self._log.close()
        # Its helpers may write for another moment.
        for _try in range(20):
            shutil.rmtree(self._folder, ignore_errors=True)
            if not os.path.exists(self._folder):
                return
            time.sleep(0.1)

    def call(self, method: str, **params: Any) -> Dict[str, Any]:
        """Send a command, return its result. Events that come meanwhile are kept."""
        self._number += 1
        message: Dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda seen: seen.get("id") == self._number)
        assert "error" not in answer, (method, answer["error"])
        return dict(answer["result"])

    def open(self, page: Path, width: int = 1280, dark: bool = False, paper: bool = False, script: bool = True) -> None:
        """Show a file, as wide as that; what went on before is forgotten."""
        self.events = []
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", media="print" if paper else "", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Page.navigate", url=page.as_uri())
        self._until(lambda seen: seen.get("method") == "Page.loadEventFired")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page (the page's own policy does not apply to it)."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def complaints(self) -> List[str]:
        """Script errors, and what the console and the browser's log have to say (a policy's refusals are among it)."""
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"]))
            elif event.get("method") == "Log.entryAdded":
                found.append(params["entry"]["text"])
            elif event.get("method") == "Runtime.consoleAPICalled":
                found.append(json.dumps(params["args"]))
            elif event.get("method") == "Page.javascriptDialogOpening":
                found.append(params["message"])
        return found

    def requests(self) -> List[str]:
        """The addresses of all that was asked for."""
        return [event["params"]["request"]["url"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]

    def screenshot(self, path: Path) -> None:
        """The whole page as a picture, for people who work on it."""
        import base64

        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 8000), "scale": 1}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]))

    def _until(self, wanted: Any) -> Dict[str, Any]:
        end = time.monotonic() + _PATIENCE
        while True:
            while b"\0" in self._rest:
                raw, _nul, self._rest = self._rest.partition(b"\0")
                seen: Dict[str, Any] = json.loads(raw)
                if "id" not in seen:
                    self.events.append(seen)
                if wanted(seen):
                    return seen
            ready: Optional[bool] = bool(select.select([self._in], [], [], max(0, end - time.monotonic()))[0])
            more = os.read(self._in, 1 << 20) if ready else b""
            if not more:
                raise AssertionError(f"chromium {'ended' if ready else 'does not answer'}: {Path(self._folder, 'log').read_text(errors='replace')[-2000:]}")
            self._rest += more
