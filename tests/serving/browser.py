"""A real Chromium, and the page of a server in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright
from process import Server

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Milliseconds for what a loaded machine makes slow.
PATIENCE = 60_000
_STORED = "mlc-rwkv-world/"
# What a model writes that may end neither its answer nor the first line of it.
_ENDLESS = {"logit_bias": {"0": -100, "11": -100, "261": -100}, "max_tokens": 20000}


def executable() -> str | None:
    """A browser of this machine."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that ends with the block."""
    with sync_playwright() as playwright:
        # What it opens is a server of ours; a sandbox needs rights that containers lack.
        browser = playwright.chromium.launch(
            executable_path=executable(), chromium_sandbox=False, timeout=PATIENCE
        )
        yield browser
        browser.close()


class Window:
    """The page of a server, in a browser with a storage of its own."""

    def __init__(self, context: BrowserContext, server: Server) -> None:
        self.context = context
        self.server = server
        self.errors: list[str] = []
        # The bodies of the requests for answers.
        self.asked: list[dict[str, Any]] = []
        self.page = self.open()

    def open(self) -> Page:
        """Another tab, with the page."""
        page = self.context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: self._heard(message.type, message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: self.errors.append(f"a dialog: {dialog.message}"))
        page.on("request", lambda request: self._sent(request.url, request.post_data))
        page.goto(self.server.url)
        return page

    def say(self, text: str) -> None:
        """Write a message, and send it."""
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")

    def ask(self, text: str) -> str:
        """What the model answers."""
        self.say(text)
        return self.answer()

    def answer(self) -> str:
        """The last answer, once it is over."""
        last = self.page.locator(".message").last
        self.page.wait_for_selector(".message.answer:last-child[aria-busy=false]")
        return last.locator("> .text").inner_text()

    def press(self, action: str) -> None:
        """Press a button of the last message."""
        self.page.locator(".message").last.get_by_role("button", name=action).click()

    def texts(self) -> list[str]:
        """What is said in all messages, without figures and buttons."""
        return self.page.locator(".message > .text").all_inner_texts()

    def note(self) -> str:
        """What is written under the last answer."""
        return self.page.locator(".note").last.inner_text()

    def set(self, **values: Any) -> None:
        """Set what is kept of the settings, and come back."""
        self.store("sampling", values)
        self.page.reload()

    def store(self, name: str, value: Any) -> None:
        """Keep `value` where the page keeps things."""
        self.page.evaluate(
            "([name, text]) => localStorage.setItem(name, text)",
            [_STORED + name, json.dumps(value)],
        )

    def stored(self) -> dict[str, Any]:
        """What the page has kept, by name."""
        found: dict[str, str] = self.page.evaluate("() => ({...localStorage})")
        return {name.removeprefix(_STORED): json.loads(text) for name, text in found.items()}

    def conversations(self) -> list[dict[str, Any]]:
        """The conversations that it has kept."""
        return [v for name, v in self.stored().items() if name.startswith("conversation/")]

    def make_endless(self) -> None:
        """From now on answers do not end by themselves."""

        def change(route: Route) -> None:
            body = json.loads(route.request.post_data or "")
            route.continue_(post_data=json.dumps({**body, **_ENDLESS, "temperature": 0}))

        self.page.route("**/v1/chat/completions", change)

    def make_answer(self, *pieces: str, end: str = "data: [DONE]\n\n") -> None:
        """From now on answers consist of `pieces`, as a model might write them."""
        chunks = [{"choices": [{"delta": {"content": p}, "finish_reason": None}]} for p in pieces]
        body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end

        def answer(route: Route) -> None:
            route.fulfill(body=body, content_type="text/event-stream; charset=utf-8")

        self.page.route("**/v1/chat/completions", answer)

    def make_true(self) -> None:
        """From now on answers are the server's again."""
        self.page.unroute("**/v1/chat/completions")

    def sideways(self) -> int:
        """By how many pixels the page is wider than its window."""
        wide: int = self.page.evaluate(
            "() => Math.max(...[document.documentElement, document.getElementById('scroller')]"
            ".map(node => node.scrollWidth - node.clientWidth))"
        )
        return wide

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.errors.append(text)

    def _sent(self, url: str, body: str | None) -> None:
        if url.endswith("/chat/completions") and body:
            self.asked.append(json.loads(body))
