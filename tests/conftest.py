"""What several test files share: the book of the smallest profile, and pages in a real browser."""

import os
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

# One thread for each of the processes that share the tests, and for the kernels they start: more
# would wait for each other. It has to be said before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from filelock import FileLock

from build import make_book

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]


def pytest_collection_modifyitems(items):
    """Put the tests of the book first: one process builds it while the others run the rest."""
    items.sort(key=lambda item: "build" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """The build folder of a book made with the profile smoke, its run beside it: once for all the
    processes that share the tests."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "book"
    with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHSAE_RUNS", str(folder / "runs"))
        if not (folder / "made").exists():
            make_book("smoke", {}, folder / "_build")
            (folder / "made").touch()
    return folder / "_build"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def server(build):
    handler = partial(Quiet, directory=str(build / "html"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.fixture(scope="session")
def browser():
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip(f"no browser: install one of {', '.join(NAMES)}, or set CHROMIUM to its path")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module", params=["Firefox", "WebKit"])
def other_browser(request, tmp_path_factory):
    """Firefox and WebKitGTK, where they are installed."""
    from browsers import Firefox, WebKit

    if request.param == "Firefox":
        names = os.environ.get("FIREFOX", ""), "firefox-esr", "firefox"
        if not (found := next(filter(None, map(shutil.which, names)), None)):
            pytest.skip("no Firefox: install firefox-esr, or set FIREFOX to its path")
        running = Firefox(found, tmp_path_factory.mktemp("firefox"))
    else:
        found = shutil.which("WebKitWebDriver")
        if not (found and ("DISPLAY" in os.environ or shutil.which("Xvfb"))):
            pytest.skip("no WebKit: install webkit2gtk-driver and xvfb")
        running = WebKit(found)
    yield running
    running.close()


@pytest.fixture
def page(browser):
    """A page whose `trouble` gathers errors, failed loads, and requests that leave the book."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page = context.new_page()
    page.trouble = []
    page.set_default_timeout(12_000)
    outside = re.compile(r"^(?!file:|data:|blob:|http://127\.0\.0\.1:)")

    def cut(route):
        page.trouble.append(f"asked for {route.request.url}")
        route.abort()

    context.route(outside, cut)
    page.on("pageerror", lambda error: page.trouble.append(f"error {error}"))

    def failed(request):
        if request.failure != "net::ERR_ABORTED":  # a lazy picture of a page that was left
            page.trouble.append(f"failed {request.url}: {request.failure}")

    page.on("requestfailed", failed)
    page.on("console", lambda m: m.type == "error" and page.trouble.append(f"console {m.text}"))
    yield page
    context.close()
