"""Firefox and WebKitGTK in tests: through WebDriver BiDi, which Firefox speaks itself, and through
the driver that Debian's webkit2gtk-driver brings."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

from websocket import create_connection

# Everything but the page's own server goes to a proxy that does not exist.
PREFERENCES = """
user_pref("network.proxy.type", 1);
user_pref("network.proxy.http", "127.0.0.1");
user_pref("network.proxy.http_port", 9);
user_pref("network.proxy.share_proxy_settings", true);
user_pref("network.proxy.allow_hijacking_localhost", false);
user_pref("remote.active-protocols", 1);
"""


class Browser:
    """A window; `trouble` gathers errors of its pages, where the browser tells of them."""

    trouble: list[str]

    def goto(self, url: str) -> None:
        """Load a page, wholly."""
        raise NotImplementedError

    def evaluate(self, function: str, argument: Any = None) -> Any:
        """Return what a function, which may be asynchronous, returns in the page, as JSON."""
        raise NotImplementedError

    def wait(self, condition: str, argument: Any = None, seconds: float = 15) -> None:
        """Wait until a function returns something true in the page."""
        self.evaluate(
            f"""async (x) => {{ const end = Date.now() + {1000 * seconds};
            while (!({condition})(x)) {{
              if (Date.now() > end) throw new Error("it never came to be");
              await new Promise((done) => setTimeout(done, 30));
            }} }}""",
            argument,
        )


class Firefox(Browser):
    """Without a screen."""

    def __init__(self, path: str, profile: Path) -> None:
        profile.mkdir(parents=True, exist_ok=True)
        (profile / "user.js").write_text(PREFERENCES, "utf-8")
        how = ["--headless", "--no-remote", "--remote-debugging-port=0", "about:blank"]
        self.process = subprocess.Popen(
            [path, "--profile", str(profile), *how],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"WebDriver BiDi listening on (ws://\S+)", line):
                break
        else:
            raise RuntimeError(f"{path} ended before it could be spoken to")
        self.numbers, self.trouble = itertools.count(1), list[str]()
        self.socket = create_connection(f"{found[1]}/session", timeout=60, suppress_origin=True)
        self.ask("session.new", capabilities={})
        self.ask("session.subscribe", events=["log.entryAdded"])
        self.context = self.ask("browsingContext.getTree")["contexts"][0]["context"]

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; what the page logs meanwhile is kept."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != number:
            entry = answer.get("params", {})
            text = str(entry.get("text"))
            if entry.get("level") == "error" and "downloadable font" not in text:
                self.trouble.append(text)  # a font may be on its way when the page is left
        if answer["type"] == "error":
            raise RuntimeError(f"{method}: {answer['message']}")
        return answer["result"]

    def goto(self, url: str) -> None:
        self.ask("browsingContext.navigate", context=self.context, url=url, wait="complete")

    def evaluate(self, function: str, argument: Any = None) -> Any:
        called = f"(async () => JSON.stringify(await ({function})({json.dumps(argument)})))()"
        answer = self.ask(
            "script.evaluate",
            expression=called,
            target={"context": self.context},
            awaitPromise=True,
            resultOwnership="none",
            userActivation=True,
        )
        if answer["type"] == "exception":
            raise RuntimeError(answer["exceptionDetails"]["text"])
        return json.loads(answer["result"].get("value", "null"))

    def close(self) -> None:
        """End the browser."""
        self.socket.close()
        self.process.kill()
        self.process.wait()


class WebKit(Browser):
    """On a screen of its own, which no one sees. It tells of no errors."""

    def __init__(self, driver: str) -> None:
        self.trouble, self.running = [], []
        browsers = sorted(Path("/usr").glob("lib*/*/webkit2gtk-4*/MiniBrowser"))
        where = dict(os.environ)
        if "DISPLAY" not in where:
            read, write = os.pipe()
            screen = [shutil.which("Xvfb") or "Xvfb", "-displayfd", str(write)]
            screen += ["-screen", "0", "1280x900x24"]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            self.running.append(subprocess.Popen(screen, pass_fds=[write], **quiet))
            where["DISPLAY"] = f":{os.read(read, 20).decode().strip()}"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/session"
        where["WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS"] = "1"  # which root cannot have
        self.running.append(subprocess.Popen([driver, f"--port={port}"], env=where))
        options = {"binary": str(browsers[-1]), "args": ["--automation"]}
        wanted = {"alwaysMatch": {"webkitgtk:browserOptions": options}}
        for _ in range(100):
            try:
                session = self.ask("", capabilities=wanted)
                break
            except URLError:  # not listening yet
                time.sleep(0.1)
        self.address += f"/{session['sessionId']}"
        self.ask("/timeouts", script=60_000)

    def ask(self, path: str, **body: Any) -> Any:
        """Send a command and return its value."""
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, data, kind)
        with urllib.request.urlopen(request, timeout=90) as answer:
            return json.load(answer)["value"]

    def goto(self, url: str) -> None:
        self.ask("/url", url=url)

    def evaluate(self, function: str, argument: Any = None) -> Any:
        script = f"""const done = arguments[1];
            (async () => ({function})(arguments[0]))()
            .then((x) => done([true, x]), (e) => done([false, String(e)]))"""
        good, value = self.ask("/execute/async", script=script, args=[argument])
        if not good:
            raise RuntimeError(value)
        return value

    def close(self) -> None:
        """End the browser, its driver and its screen."""
        for process in reversed(self.running):
            process.terminate()
            process.wait()
