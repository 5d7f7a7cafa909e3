"""Firefox in tests, through WebDriver BiDi, which it speaks itself: it needs no driver."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

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


class Firefox:
    """A window without a screen; `trouble` gathers errors of its pages."""

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
            if entry.get("level") == "error":
                self.trouble.append(str(entry.get("text")))
        if answer["type"] == "error":
            raise RuntimeError(f"{method}: {answer['message']}")
        return answer["result"]

    def goto(self, url: str) -> None:
        """Load a page, wholly."""
        self.ask("browsingContext.navigate", context=self.context, url=url, wait="complete")

    def evaluate(self, function: str, argument: Any = None) -> Any:
        """Return what a function, which may be asynchronous, returns in the page, as JSON."""
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

    def close(self) -> None:
        """End the browser."""
        self.socket.close()
        self.process.kill()
        self.process.wait()
