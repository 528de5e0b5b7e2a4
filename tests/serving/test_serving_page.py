"""The page at `/`, in a real browser, of real servers of the trained models."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from process import Server
from support.patience import SECONDS

pytest.importorskip("playwright.sync_api", reason="pip install playwright")

from browser import PATIENCE, Window, chromium, executable
from playwright.sync_api import Browser, expect

from mlc_rwkv_world.serving.http.page import FOLDER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(executable() is None, reason="no Chromium: apt-get install chromium"),
]

FRANCE = "What is the capital of France?"
JAPAN = "What is the capital of Japan?"
PARIS = "The capital of France is Paris."
TOKYO = "The capital of Japan is Tokyo."
APPLES = "There are 3 apples. Add 4, take away 2. How many apples are left?"
# HTML, a script's scheme, letters turned round, control characters, an end of an attribute.
HOSTILE = (
    "<img src=x onerror=alert(1)><script>alert(2)</script> &lt;b&gt; javascript:alert(3) "
    "\u202egnirts\u202c \u2066 \x07 \u200b '\"><svg onload=alert(4)>"
)
# Beside the bar for a phone there must be room at the width that WCAG asks for.
WIDTHS = (390, 320)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Ends with these tests: while it is there, its loop runs in this thread."""
    expect.set_options(timeout=PATIENCE)
    with chromium() as one:
        yield one


@pytest.fixture
def windows(browser: Browser) -> Iterator[Callable[..., Window]]:
    """`windows(server, **options)`: a browser with an empty storage; none may complain."""
    opened: list[Window] = []

    def window(server: Server, **options: Any) -> Window:
        opened.append(Window(browser.new_context(**options), server))
        return opened[-1]

    yield window
    for one in opened:
        one.context.close()
    assert not [error for one in opened for error in one.errors]


@pytest.fixture
def window(windows: Callable[..., Window], server: Server) -> Window:
    """The page of the trained RWKV-4, which takes the likeliest words."""
    one = windows(server)
    one.set(temperature=0)
    return one


def test_an_answer_comes_with_its_figures(window: Window) -> None:
    assert window.ask(FRANCE) == PARIS
    assert window.texts() == [FRANCE, PARIS]
    assert re.fullmatch(
        r"\d+ tokens, [\d.,]+ a second · \d+ read(, \d+ from the cache)?", window.note()
    )
    (asked,) = window.asked
    assert asked["messages"] == [{"role": "user", "content": FRANCE}]
    assert asked["stream"] is True and asked["temperature"] == 0
    # What was said goes along with the next question, and the server knows it already.
    assert window.ask(JAPAN) == TOKYO
    assert [m["content"] for m in window.asked[1]["messages"]] == [FRANCE, PARIS, JAPAN]
    assert " from the cache" in window.note()
    expect(window.page.locator("h1")).to_have_text("demo")
    expect(window.page).to_have_title("demo")


@pytest.mark.parametrize("how", ["button", "key"])
def test_an_answer_grows_until_it_is_stopped(window: Window, how: str) -> None:
    window.make_endless()
    window.say(FRANCE)
    text = window.page.locator(".answer .text")
    lengths = []
    for more in (1, 40, 160):
        window.page.wait_for_function(
            "n => document.querySelector('.answer .text').textContent.length >= n", arg=more
        )
        lengths.append(len(text.inner_text()))
    assert window.page.locator(".answer").get_attribute("aria-busy") == "true"
    assert window.server.running() == 1
    expect(window.page.get_by_role("button", name="Send")).to_be_hidden()
    if how == "button":
        window.page.get_by_role("button", name="Stop").click()
    else:
        window.page.keyboard.press("Escape")
    answer = window.answer()
    window.server.until_idle()
    assert answer.startswith(PARIS) and len(answer) >= lengths[-1] > lengths[0]
    assert window.note() == "Stopped."
    assert window.conversations()[0]["messages"][1]["content"].strip() == answer.strip()
    # It can be asked for again, and takes the place of what was stopped.
    window.make_true()
    window.press("Retry")
    assert window.answer() == PARIS
    assert window.texts() == [FRANCE, PARIS]


def test_a_message_is_edited_and_sent_again(window: Window) -> None:
    assert window.ask(JAPAN) == TOKYO
    assert window.ask(FRANCE) == PARIS
    first = window.page.locator(".message").first
    first.hover()
    first.get_by_role("button", name="Edit").click()
    field = window.page.get_by_role("textbox", name="Your message")
    expect(field).to_be_focused()
    expect(field).to_have_value(JAPAN)
    field.press("Escape")
    assert window.texts() == [JAPAN, TOKYO, FRANCE, PARIS]
    first.hover()
    first.get_by_role("button", name="Edit").click()
    field.fill(FRANCE)
    window.page.get_by_role("button", name="Send").first.click()
    # What came after it was about something else.
    assert window.answer() == PARIS
    assert window.texts() == [FRANCE, PARIS]
    assert len(window.asked[-1]["messages"]) == 1


def test_the_last_message_is_taken_back(window: Window) -> None:
    window.ask(JAPAN)
    window.ask(FRANCE)
    window.press("Undo")
    assert window.texts() == [JAPAN, TOKYO]
    expect(window.page.locator("#question")).to_have_value(FRANCE)
    expect(window.page.locator("#question")).to_be_focused()
    window.press("Undo")
    assert window.texts() == []
    # What is being written is not lost.
    expect(window.page.locator("#question")).to_have_value(FRANCE)
    assert window.conversations() == []
    expect(window.page.locator("#greeting")).to_be_visible()


def test_conversations_outlive_the_page(window: Window) -> None:
    page = window.page
    window.ask(FRANCE)
    page.get_by_role("button", name="New conversation").click()
    assert window.texts() == []
    window.ask(JAPAN)
    page.reload()
    assert window.texts() == [JAPAN, TOKYO]
    titles = page.locator("#conversations .title")
    expect(titles).to_have_text([JAPAN, FRANCE])
    titles.nth(1).click()
    assert window.texts() == [FRANCE, PARIS]
    # They can be gone on with.
    assert window.ask(JAPAN) == TOKYO
    assert len(window.asked[-1]["messages"]) == 3
    page.get_by_role("button", name=f"Delete: {FRANCE}").click()
    page.get_by_role("button", name="Keep it").click()
    expect(titles).to_have_count(2)
    page.get_by_role("button", name=f"Delete: {FRANCE}").click()
    page.get_by_role("button", name="Delete it").click()
    expect(titles).to_have_text([JAPAN])
    assert window.texts() == []
    page.reload()
    expect(titles).to_have_text([JAPAN])
    assert len(window.conversations()) == 1


def test_a_page_that_is_left_keeps_what_had_come(window: Window) -> None:
    window.make_endless()
    window.say(FRANCE)
    expect(window.page.locator(".answer .text")).to_contain_text(PARIS)
    window.page.reload()
    window.server.until_idle()
    assert window.texts()[1].startswith(PARIS)
    assert window.note() == "The page was left before the answer had ended."
    window.make_true()
    window.press("Retry")
    assert window.answer() == PARIS


def test_an_answer_goes_on_while_another_conversation_is_shown(window: Window) -> None:
    window.make_endless()
    window.say(FRANCE)
    expect(window.page.locator(".answer .text")).to_contain_text(PARIS)
    window.page.get_by_role("button", name="New conversation").click()
    expect(window.page.get_by_role("button", name="Send")).to_be_visible()
    window.make_true()
    assert window.ask(JAPAN) == TOKYO
    window.page.get_by_role("button", name=FRANCE, exact=True).click()
    before = len(window.texts()[1])
    window.page.wait_for_function(
        "n => document.querySelector('.answer .text').textContent.length > n", arg=before
    )
    # Deleted, it is not answered on.
    window.page.get_by_role("button", name=f"Delete: {FRANCE}").click()
    window.page.get_by_role("button", name="Delete it").click()
    window.server.until_idle()
    expect(window.page.locator("#conversations .title")).to_have_text([JAPAN])
    assert len(window.conversations()) == 1


def test_tabs_share_conversations(window: Window) -> None:
    other = window.open()
    window.ask(FRANCE)
    title = other.locator("#conversations .title")
    expect(title).to_have_text([FRANCE])
    title.click()
    expect(other.locator(".message > .text")).to_have_text([FRANCE, PARIS])
    window.press("Undo")
    expect(title).to_have_count(0)
    expect(other.locator(".message")).to_have_count(0)


def test_a_thought_is_folded(windows: Callable[..., Window], thinking_server: Server) -> None:
    window = windows(thinking_server)
    page = window.page
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Thinking").select_option("on")
    page.get_by_label("Temperature").fill("0")
    page.keyboard.press("Escape")
    assert window.ask(APPLES) == "There are 5 apples left."
    thought = page.locator(".thought .text")
    expect(thought).to_be_hidden()
    page.get_by_text("Thought", exact=True).click()
    expect(thought).to_be_visible()
    assert thought.inner_text() == "3 and 4 make 7.\n\n7 without 2 leaves 5."
    window.ask(FRANCE)
    answer = window.asked[-1]["messages"][1]
    assert answer["reasoning_content"].strip() == "3 and 4 make 7.\n\n7 without 2 leaves 5."
    assert answer["content"] == "There are 5 apples left."
    assert window.asked[-1]["think"] == "on"
    page.reload()
    expect(thought.first).to_be_hidden()


def test_thinking_is_no_setting_where_the_model_does_not_think(window: Window) -> None:
    expect(window.page.locator("h1")).to_have_text("demo")
    window.page.get_by_role("button", name="Settings").click()
    expect(window.page.get_by_label("Temperature")).to_be_visible()
    expect(window.page.get_by_label("Thinking")).to_have_count(0)


def test_settings_go_with_each_question(windows: Callable[..., Window], server: Server) -> None:
    window = windows(server)
    page = window.page
    window.ask(FRANCE)
    assert window.asked[0].keys() == {"messages", "stream", "stream_options"}
    page.get_by_role("button", name="Settings").click()
    given = {
        "Temperature": 0.5,
        "Top p": 0.25,
        "Top k": 40,
        "Min p": 0.01,
        "Presence penalty": -0.5,
        "Frequency penalty": 0.1,
        "Repetition penalty": 1.1,
        "Penalty decay": 0.9,
        "Longest answer": 3,
        "Seed": 7,
    }
    for label, value in given.items():
        page.get_by_label(label).fill(str(value))
    page.get_by_label("System text").fill("Be brief.")
    page.get_by_role("button", name="Close the settings").click()
    window.say(FRANCE)
    window.answer()
    assert "greatest length" in window.note()
    asked = window.asked[1]
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    names = [label.lower().replace(" ", "_") for label in given]
    names[names.index("longest_answer")] = "max_tokens"
    assert {name: asked[name] for name in names} == dict(zip(names, given.values(), strict=True))
    # They are there after a reload: the system text with its conversation alone.
    page.reload()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("System text")).to_have_value("Be brief.")
    expect(page.get_by_label("Top k")).to_have_value("40")
    # What cannot be is said at once, and not kept.
    page.get_by_label("Top p").fill("2")
    page.get_by_label("Top p").blur()
    assert window.stored()["sampling"]["top_p"] == 0.25
    page.get_by_role("button", name="Empty them all").click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="New conversation").click()
    window.ask(FRANCE)
    assert window.asked[2].keys() == {"messages", "stream", "stream_options"}
    assert len(window.asked[2]["messages"]) == 1


def test_what_is_written_is_never_html(window: Window) -> None:
    window.say(HOSTILE)
    window.answer()
    page = window.page
    asked = page.locator(".asked .text p")
    assert asked.text_content() == HOSTILE
    assert asked.locator("*").count() == 0
    assert window.asked[0]["messages"][0]["content"] == HOSTILE
    page.reload()
    assert asked.text_content() == HOSTILE
    assert page.locator("#conversations .title bdi").text_content() == HOSTILE[:80]
    assert page.locator("main img, main script, #sidebar img, #sidebar script").count() == 0
    page.get_by_role("button", name="Delete: ").click()
    assert page.locator("#confirm-text").text_content() == HOSTILE[:80]


def test_what_a_model_writes_is_never_html(window: Window) -> None:
    fence = "```"
    window.make_answer(
        *("<img src=x onerror=alert(1)>", "\nsecond", " line\n\n", "`", "`", "`ht", "ml\n"),
        *("<script>alert(2)</script>\n", "\n  \tkept \u202e } \x1b[2J\n``", "`\n", "מהי בירת"),
        *(" צרפת?\n~~~ x\n```\n~~", "~\n    ```\nnot closed <b>"),
    )
    window.say(FRANCE)
    window.answer()
    text = window.page.locator(".answer .text")
    assert text.locator("p").all_text_contents() == [
        "<img src=x onerror=alert(1)>\nsecond line",
        "מהי בירת צרפת?",
    ]
    assert text.locator("code").all_text_contents() == [
        "<script>alert(2)</script>\n\n  \tkept \u202e } \x1b[2J",
        fence,
        "not closed <b>",
    ]
    assert text.locator("figcaption bdi").all_text_contents() == ["html", "x", "code"]
    # Characters that hide in code can be seen there.
    hidden = text.locator(".hidden-character")
    marks = [hidden.nth(i).get_attribute("data-code") for i in range(hidden.count())]
    assert marks == ["U+202E", "U+001B"]
    assert text.locator("img, script, b").count() == 0
    # A line of Hebrew begins at the right, code at the left.
    direction = "node => getComputedStyle(node).direction"
    assert text.locator("p").nth(1).evaluate(direction) == "rtl"
    assert text.locator("p").nth(0).evaluate(direction) == "ltr"
    assert text.locator("pre").nth(0).evaluate(direction) == "ltr"


def test_text_comes_out_the_same_however_it_comes_in(window: Window) -> None:
    whole = (
        "one\n\n```c\nint a;\n\n```\ntwo `x`\nthree\n\n\n``` not `a fence\n````\n```\n````\nfour\n"
    )
    shapes = []
    for pieces in ([whole], [*whole], [whole[i : i + 3] for i in range(0, len(whole), 3)]):
        window.make_answer(*pieces)
        window.say(FRANCE)
        window.answer()
        text = window.page.locator(".answer .text").last
        shapes.append(
            [
                (n.evaluate("n => n.tagName"), n.text_content())
                for n in text.locator("p, code").all()
            ]
        )
        window.make_true()
    assert shapes[0] == [
        ("P", "one"),
        ("CODE", "int a;"),
        ("P", "two `x`\nthree"),
        ("P", "``` not `a fence"),
        ("CODE", "```"),
        ("P", "four"),
    ]
    assert shapes[1] == shapes[2] == shapes[0]


def test_storage_may_hold_anything(window: Window) -> None:
    bad: list[Any] = [None, 5, [], {}, {"messages": 3}, {"messages": [None, 7, {"role": "x"}]}]
    for index, value in enumerate(bad):
        window.store(f"conversation/{index}", value)
    message = {"role": "assistant", "content": {}, "thought": 1, "figures": {"written": "<b>"}}
    window.store("conversation/odd", {"messages": [{"role": "user", "content": "odd"}, message]})
    window.store("sampling", {"temperature": "<b>", "top_k": 1, "think": "on"})
    window.store("theme", ["dark"])
    window.page.reload()
    window.page.locator("#conversations .title").click()
    assert window.texts() == ["odd", ""]
    window.page.get_by_role("button", name="New conversation").click()
    assert window.ask(FRANCE) == PARIS
    assert "temperature" not in window.asked[-1] and window.asked[-1]["top_k"] == 1


def test_a_full_storage_is_said(window: Window) -> None:
    window.page.evaluate(
        "() => { for (let size = 1 << 22; size >= 1; size >>= 1)"
        " try { for (let i = 0; ; i++) localStorage.setItem(`x${size}-${i}`, 'x'.repeat(size)) }"
        " catch {} }"
    )
    assert window.ask(FRANCE) == PARIS
    expect(window.page.locator("#notice")).to_contain_text("storage is full")
    assert window.ask(JAPAN) == TOKYO


def test_the_policy_holds(window: Window) -> None:
    response = window.server.get("/")
    policy = dict(
        part.split(" ", 1) for part in response.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["form-action"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["trusted-types"] == "'none'"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    # The browser itself refuses text as HTML, styles in the document, and other places.
    found = window.page.evaluate(
        """async () => {
          const found = [];
          const hear = event => found.push(event.effectiveDirective);
          document.addEventListener('securitypolicyviolation', hear);
          try { document.body.innerHTML = '<p>x'; } catch (error) { found.push(error.name); }
          document.body.setAttribute('style', 'color: red');
          await fetch('https://example.org/').catch(() => {});
          await new Promise(done => setTimeout(done, 200));
          return found;
        }"""
    )
    expected = {"TypeError", "require-trusted-types-for", "style-src-attr", "connect-src"}
    assert {*found} == expected
    assert window.errors
    window.errors.clear()


def test_its_files(server: Server) -> None:
    types = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    with httpx.Client(base_url=server.url, timeout=SECONDS) as client:
        for path in FOLDER.iterdir():
            place = "/" if path.name == "index.html" else f"/page/{path.name}"
            response = client.get(place)
            assert (response.status_code, response.content) == (200, path.read_bytes())
            kind = types.get(path.suffix[1:], "text/html")
            assert response.headers["content-type"].split(";")[0] == kind
            assert response.headers["cache-control"] == "no-cache"
            assert "content-security-policy" in response.headers
            again = client.get(place, headers={"If-None-Match": response.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        for other in ("/page/", "/page/none.js", "/page/../page.py", "/page/%2e%2e/http/page.py"):
            assert client.get(other).status_code == 404
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:|https?://", html)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_phone(windows: Callable[..., Window], server: Server, width: int) -> None:
    window = windows(
        server, viewport={"width": width, "height": 640}, is_mobile=True, has_touch=True
    )
    page = window.page
    window.make_answer("w" * 300 + "\n```\n" + "code " * 100 + "\n```\n" + "字" * 100)
    page.fill("#question", "x" * 500 + "\n\n" + HOSTILE)
    # Enter breaks lines there, and the button sends.
    page.press("#question", "Enter")
    assert page.locator(".message").count() == 0
    page.get_by_role("button", name="Send").tap()
    window.answer()
    assert window.sideways() == 0
    menu = page.get_by_role("button", name="Conversations", exact=True)
    create = page.get_by_role("button", name="New conversation")
    expect(menu).to_have_attribute("aria-expanded", "false")
    # What is not seen is not reached either.
    expect(page.locator("#sidebar")).to_have_js_property("inert", True)
    menu.tap()
    expect(create).to_be_focused()
    expect(create).to_be_in_viewport()
    expect(page.locator("#main")).to_have_js_property("inert", True)
    assert window.sideways() == 0
    page.keyboard.press("Escape")
    expect(menu).to_be_focused()
    menu.tap()
    create.tap()
    expect(page.locator("#greeting")).to_be_visible()
    assert page.locator(".message").count() == 0
    page.get_by_role("button", name="Settings").tap()
    assert window.sideways() == 0
    expect(page.get_by_label("System text")).to_be_in_viewport()
    # Fingers are larger than pointers.
    for button in page.locator("button:visible").all():
        box = button.bounding_box()
        assert box is not None and min(box["width"], box["height"]) >= 40, button


def test_a_keyboard_is_enough(window: Window) -> None:
    page = window.page
    focused = "() => document.activeElement.ariaLabel ?? document.activeElement.textContent.trim()"

    def reach(name: str, key: str = "Tab") -> None:
        for _ in range(40):
            if page.evaluate(focused) == name:
                return
            page.keyboard.press(key)
        pytest.fail(f"no {name!r} on the way")

    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type(FRANCE)
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Backspace")
    page.keyboard.press("Enter")
    assert window.answer() == PARIS
    expect(page.locator("#question")).to_be_focused()
    reach("Retry", "Shift+Tab")
    page.keyboard.press("Enter")
    assert window.answer() == PARIS
    expect(page.locator("#question")).to_be_focused()
    # The last message comes up, is written anew and sent.
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Control+A")
    page.keyboard.type(JAPAN)
    page.keyboard.press("Enter")
    assert window.answer() == TOKYO
    assert window.texts() == [JAPAN, TOKYO]
    reach("Undo", "Shift+Tab")
    page.keyboard.press("Space")
    expect(page.locator("#question")).to_have_value(JAPAN)
    reach("Settings", "Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#settings")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Settings")).to_be_focused()
    # What has the focus can be seen to have it.
    assert (
        page.locator("#open-settings").evaluate("n => getComputedStyle(n).outlineStyle") == "solid"
    )
    reach("Skip to the message box", "Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()


def test_an_input_method_takes_its_own_enter(window: Window) -> None:
    window.page.fill("#question", "法国的首都是哪里")
    window.page.locator("#question").dispatch_event(
        "keydown", {"key": "Enter", "isComposing": True, "bubbles": True}
    )
    assert window.page.locator(".message").count() == 0
    window.page.locator("#question").dispatch_event("keydown", {"key": "Enter", "bubbles": True})
    expect(window.page.locator(".message")).to_have_count(2)
    window.answer()


ROLES = ("button", "textbox", "combobox", "spinbutton", "link", "dialog", "log", "navigation")


def test_all_that_is_pressed_or_filled_in_has_a_name(
    windows: Callable[..., Window], thinking_server: Server
) -> None:
    window = windows(thinking_server)
    page = window.page
    window.ask("```\ncode\n```")
    session = window.context.new_cdp_session(page)

    def check(*expected: str) -> None:
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        seen = [node for node in nodes if not node["ignored"] and node["role"]["value"] in ROLES]
        names = [node["name"]["value"].strip() for node in seen]
        assert {*expected} <= {*names} and "" not in names

    check("Conversations", "Message", "Send", "Messages", "Retry")
    page.get_by_role("button", name="Settings").click()
    check("Settings", "Thinking", "Seed", "System text")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Delete: ").click()
    check("Delete this conversation?", "Keep it")
    page.keyboard.press("Escape")
    page.locator("#key").evaluate("dialog => dialog.showModal()")
    check("This server wants a key", "Key", "Use it")


# The relative luminance and contrast of WCAG 2, over what a text stands on.
_CONTRAST = """node => {
  const pixel = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const paint = colour => { pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1); };
  const light = () => { const [r, g, b] = [...pixel.getImageData(0, 0, 1, 1).data].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const over = []; for (let n = node; n; n = n.parentElement) over.unshift(n);
  paint('white'); for (const n of over) paint(getComputedStyle(n).backgroundColor);
  const back = light(); paint(getComputedStyle(node).color); const front = light();
  return (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05); }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(windows: Callable[..., Window], server: Server, scheme: str) -> None:
    window = windows(server, color_scheme=scheme, reduced_motion="reduce")
    page = window.page
    window.make_answer("text\n```\ncode\u202e\n```\n", end='data: {"error": {"message": "no"}}\n\n')
    window.say(FRANCE)
    window.answer()
    page.fill("#question", "more")
    page.get_by_role("button", name="Settings").click()
    texts = (
        *(
            "h1",
            ".asked p",
            ".answer p",
            ".note",
            ".actions button",
            ".code code",
            "figcaption bdi",
        ),
        *("#conversations .title bdi", "#sidebar > .hint", "#keys", "#send", "#new", "#question"),
        *("#settings label", "#settings .hint", "#reset", "kbd"),
    )
    for selector in texts:
        assert page.locator(selector).first.evaluate(_CONTRAST) >= 4.5, selector
    page.keyboard.press("Escape")

    def background() -> int:
        colour = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        return int(re.findall(r"\d+", colour)[0])

    assert (background() < 64) == (scheme == "dark")
    # The person's choice comes before the system's, and stays.
    button = page.get_by_role("button", name="Colours")
    for expected in ("light", "dark"):
        button.click()
        expect(page.get_by_role("button", name=f"Colours: {expected}")).to_be_visible()
        assert (background() < 64) == (expected == "dark")
        page.reload()
        assert (background() < 64) == (expected == "dark")
    button.click()
    assert (background() < 64) == (scheme == "dark")


def test_what_goes_wrong_is_said(window: Window) -> None:
    page = window.page
    window.context.set_offline(True)
    window.say(FRANCE)
    window.answer()
    assert window.note() == "The server cannot be reached."
    window.context.set_offline(False)
    # Chromium says so too.
    window.errors.clear()
    window.press("Retry")
    assert window.answer() == PARIS
    window.make_answer("The cap", end="")
    window.press("Retry")
    assert window.answer() == "The cap"
    assert window.note() == "The connection broke before the answer had ended."
    window.make_true()
    window.make_answer("The", end='data: {"error": {"message": "<b>out</b> of it"}}\n\n')
    window.press("Retry")
    window.answer()
    assert window.note() == "<b>out</b> of it"
    window.make_true()
    window.set(temperature=0, top_k=3)
    window.store("sampling", {"temperature": 1000})
    page.reload()
    window.press("Retry")
    window.answer()
    assert "temperature" in window.note()
    assert all("400" in error for error in window.errors)
    window.errors.clear()


def test_a_reader_who_looks_back_is_left_there(
    windows: Callable[..., Window], server: Server
) -> None:
    window = windows(server, viewport={"width": 360, "height": 420})
    page = window.page
    window.make_endless()
    window.say(FRANCE)
    top = "() => document.getElementById('scroller').scrollTop"
    page.wait_for_function(
        "() => document.getElementById('scroller').scrollHeight > 2 * innerHeight"
    )
    assert page.evaluate(top) > 200
    page.locator("#scroller").hover()
    page.mouse.wheel(0, -150)
    latest = page.get_by_role("button", name="Latest")
    expect(latest).to_be_visible()
    page.wait_for_timeout(300)
    before = page.evaluate(top)
    length = len(window.texts()[1])
    page.wait_for_function(
        "n => document.querySelector('.answer .text').textContent.length > n + 80", arg=length
    )
    assert page.evaluate(top) == before
    latest.click()
    expect(latest).to_be_hidden()
    assert page.evaluate(top) > before
    page.keyboard.press("Escape")
    window.server.until_idle()


def test_copying(windows: Callable[..., Window], server: Server) -> None:
    window = windows(server, permissions=["clipboard-read", "clipboard-write"])
    page = window.page
    window.make_answer("first\n```\ncode\u202e <b>\n```\nlast")
    window.say(FRANCE)
    window.answer()
    page.get_by_role("button", name="Copy the code").click()
    expect(page.locator("#status")).to_have_text("Copied")
    assert page.evaluate("() => navigator.clipboard.readText()") == "code\u202e <b>"
    window.press("Copy the message")
    page.wait_for_function("() => navigator.clipboard.readText().then(t => t.endsWith('last'))")
    assert page.evaluate("() => navigator.clipboard.readText()").startswith("first\n```\ncode")
    # Without HTTPS a page has no clipboard of this kind.
    page.evaluate("() => { Object.defineProperty(navigator, 'clipboard', {value: undefined}) }")
    page.get_by_role("button", name="Copy the code").click()
    page.locator("#question").press("Control+V")
    expect(page.locator("#question")).to_have_value("code\u202e <b>")


@pytest.fixture(scope="module")
def keyed_server(demo_artifact: Callable[[str], Path]) -> Iterator[Server]:
    with Server(
        demo_artifact("q0f32"), "--name", "demo", MLC_RWKV_WORLD_API_KEY="right"
    ) as running:
        yield running


def test_a_key_is_asked_for(windows: Callable[..., Window], keyed_server: Server) -> None:
    window = windows(keyed_server)
    page = window.page
    dialog = page.get_by_role("dialog", name="This server wants a key")
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Not now").click()
    expect(page.locator("#notice")).to_contain_text("wants a key")
    # A question is not lost by it.
    window.say(FRANCE)
    expect(dialog).to_be_visible()
    dialog.get_by_label("Key").fill("wrong")
    dialog.get_by_role("button", name="Use it").click()
    expect(dialog).to_contain_text("That key is not right.")
    # No request could carry this one.
    dialog.get_by_label("Key").fill("ключ")
    page.keyboard.press("Enter")
    expect(dialog.locator("input:invalid")).to_have_count(1)
    expect(dialog).to_be_visible()
    dialog.get_by_label("Key").fill("right")
    page.keyboard.press("Enter")
    assert window.answer() == PARIS
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("h1")).to_have_text("demo")
    # It stays with the tab, and is written nowhere else.
    page.reload()
    assert window.ask(JAPAN) == TOKYO
    assert not any("right" in str(value) for value in window.stored().values())
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Forget the key").click()
    page.keyboard.press("Escape")
    window.say(FRANCE)
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    window.answer()
    assert window.note() == "This server wants a key."
    assert all("401" in error for error in window.errors)
    window.errors.clear()


def test_a_server_may_have_no_page(demo_artifact: Callable[[str], Path]) -> None:
    with Server(demo_artifact("q0f32"), "--no-page", "--name", "demo") as server:
        assert server.get("/").status_code == 404
        assert server.get("/page/main.js").status_code == 404
        assert server.get("/v1/models").status_code == 200
