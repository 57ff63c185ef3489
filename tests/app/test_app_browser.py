"""The page in headless Chromium: upload, report, image, comparison, download, refusals."""

import json
import re
import threading
import urllib.parse
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.extended

WAIT = 60_000  # milliseconds; a busy machine is slow


@pytest.fixture
def open_page(address, browser):
    """open_page(width) gives a page and the addresses it asked for."""
    opened = []

    def opens(width=1280, height=900, **options):
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        page.set_default_timeout(WAIT)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        opened.append(page)
        page.goto(address)
        page.get_by_role("button", name="Write the report").wait_for()
        return page, asked

    yield opens
    for page in opened:
        page.close()


def upload(page, name, data):
    page.locator("#upload input[type=file]").set_input_files(
        {"name": name, "mimeType": "application/octet-stream", "buffer": data}
    )


def settle(page, label, value):
    field = page.get_by_label(label, exact=True).locator("visible=true").first
    for _ in range(20):
        field.fill(str(value))
        field.blur()
        # A field that has only just appeared may still be given its first value.
        page.wait_for_timeout(100)
        if field.input_value() == str(value):
            return
    raise AssertionError(f"{label}: does not take {value}")


def open_tab(page, name):
    """The click returns before the page shows the tab: fields with the same name are in several."""
    page.get_by_role("tab", name=name).click()
    page.locator("[role=tab][aria-selected=true]", has_text=name).wait_for()


def wait_in_view(page, selector):
    """Waits until all of an element is on screen, and nothing covers its middle."""
    page.wait_for_function(
        """selector => { const e = document.querySelector(selector)
        if (!e) return false
        const r = e.getBoundingClientRect()
        const found = document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2)
        return r.top >= 0 && r.bottom <= innerHeight && (e === found || e.contains(found)) }""",
        arg=selector,
    )


def quick(page, tab, *prefixes):
    """Few steps in a tab, and the smallest image."""
    open_tab(page, tab)
    for prefix in prefixes:
        settle(page, f"number input for {prefix}Steps", 4)
    page.get_by_role("button", name="More settings").locator("visible=true").click()
    page.get_by_role("radio", name="32", exact=True).locator("visible=true").check()


def test_upload_report_generate_compare_download(open_page, address, xray_png):
    page, asked = open_page()
    assert page.get_by_text("Research software, not a medical device").is_visible()

    page.get_by_role("button", name="Settings").click()
    settle(page, "number input for Maximum length", 6)
    upload(page, "xray.png", xray_png)
    page.locator("#report-message").get_by_text("Done.").wait_for()
    assert page.locator("#report textarea").input_value()
    assert page.locator("#xray img").get_attribute("alt") == "Chest X-ray Uploaded X-ray"

    quick(page, "Generate", "")
    page.get_by_label("Findings").locator("visible=true").fill("Large <b>left</b> effusion")
    page.get_by_role("button", name="Generate", exact=True).click()
    link = page.locator("#generated a.download")
    link.wait_for()
    with page.expect_download() as downloading:
        link.click()
    name = downloading.value.suggested_filename
    assert name == "large-b-left-b-effusion_seed0.png"
    image = Image.open(downloading.value.path())
    assert image.size == (32, 32)
    assert image.text["prompt"] == "Large <b>left</b> effusion"
    assert image.text["num_inference_steps"] == "4"

    quick(page, "Compare", "A: ", "B: ")
    page.get_by_role("button", name="Generate both").click()
    page.locator("#compared-b a.download").wait_for()
    assert page.locator("#compared-a a.download").is_visible()

    open_tab(page, "Session")
    figures = page.locator("ul.session figure")
    # Three images, and the report before them.
    assert figures.count() == 4
    assert figures.nth(2).get_by_text("Large <b>left</b> effusion").is_visible()
    page.get_by_role("button", name="Clear this session").click()
    page.get_by_text("Generated images and reports appear here.").wait_for()

    # Nothing came from elsewhere: no fonts, no analytics.
    hosts = {urllib.parse.urlsplit(url).netloc for url in asked if url.startswith("http")}
    assert hosts == {urllib.parse.urlsplit(address).netloc}


def test_a_generated_image_is_read_and_a_report_downloaded(open_page):
    page, _ = open_page()
    page.get_by_role("button", name="Settings").locator("visible=true").click()
    settle(page, "number input for Maximum length", 4)
    quick(page, "Generate", "")
    page.get_by_role("button", name="Random seed").click()
    settle(page, "number input for Images", 2)
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#generate-message").get_by_text("per step").wait_for()
    assert page.locator("#generated a.download").count() == 2
    page.get_by_role("button", name="Read the last image").click()
    page.locator("#xray figcaption").get_by_text("Generated: No acute finding.").wait_for()
    page.locator("#report-message").get_by_text("Done.").wait_for()
    page.get_by_role("button", name="Copy").click()
    page.locator("#report-message").get_by_text("Copied.").wait_for()
    with page.expect_download() as downloading:
        page.locator("#report-sections").get_by_role("link", name="Download JSON").click()
    found = json.loads(Path(downloading.value.path()).read_text())
    assert found["report"] == page.locator("#report textarea").input_value()
    assert found["finish_reason"] == "length"
    open_tab(page, "Session")
    assert page.locator("ul.session figure").locator("visible=true").count() == 3


def test_several_files_become_a_table(open_page, xray_png):
    page, _ = open_page()
    open_tab(page, "Files")
    page.get_by_role("button", name="Settings").locator("visible=true").click()
    settle(page, "number input for Maximum length", 4)
    page.locator("#files").get_by_role("button").first.wait_for()
    page.locator("#files input[type=file]").set_input_files(
        [
            {"name": name, "mimeType": "image/png", "buffer": data}
            for name, data in (("a.png", xray_png), ("b.png", b"This is a text."))
        ]
    )
    # The names appear as soon as the files are being sent; the list is that of the server's files.
    page.locator("#files table.file-preview").get_by_label("b.png").wait_for()
    page.get_by_role("button", name="Write the reports").click()
    page.locator("#files-message").get_by_text("Done: 1 reports. 1 could not be read.").wait_for()
    assert page.locator("table.reports th[scope=row]").all_inner_texts() == ["a.png", "b.png"]
    assert page.locator("table.reports .complaint").get_by_text("sound header").is_visible()


def test_what_is_no_xray_is_refused_with_a_message(open_page, bomb_png, xray_png, tmp_path):
    page, _ = open_page()
    message = page.locator("#report-message [role=alert]")
    upload(page, "text.png", b"This is a text.")
    message.get_by_text("expected an image with a sound header").wait_for()
    upload(page, "bomb.png", bomb_png)
    message.get_by_text("expected at most 50000000 pixels").wait_for()
    upload(page, "cut.png", xray_png[: len(xray_png) // 2])
    message.get_by_text(re.compile("broken|truncated")).wait_for()

    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(200 * 2**20)
    page.locator("#upload input[type=file]").set_input_files(large)
    page.get_by_text(re.compile("exceed the maximum allowed size")).first.wait_for()
    # The page still works.
    page.get_by_role("button", name="Write the report").click()
    message.get_by_text("expected an upload or an example first").wait_for()


def test_a_narrow_screen_and_a_keyboard(open_page):
    page, _ = open_page(390, 844)
    for tab in ("Report", "Files", "Generate", "Compare", "Session"):
        open_tab(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    open_tab(page, "Report")

    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "(e => e.getAttribute('aria-label') || e.innerText || e.tagName)"
                "(document.activeElement)"
            ).strip()
        )
    for name in ("Click to upload or drop files", "No Finding", "Write the report", "Stop"):
        assert any(name in found for found in reached), (name, reached)

    # Every field has a name, every image a description.
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('input:not([type=file]), textarea, button, img')]
        .filter(e => e.offsetParent && !(e.labels && e.labels.length) && !e.innerText.trim()
          && !e.getAttribute('aria-label') && !e.getAttribute('alt') && !e.title)
        .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert nameless == []


def test_an_example_is_chosen(open_page):
    page, _ = open_page()
    examples = page.locator("#examples button")
    if examples.count() == 0:
        pytest.skip("no examples: they lie in the repository only")
    page.get_by_role("button", name="Settings").click()
    settle(page, "number input for Maximum length", 4)
    examples.first.click()
    page.locator("#report-message").get_by_text("Done.").wait_for()
    assert "Example: X-ray 1" in page.locator("#xray img").get_attribute("alt")


def test_stopping(open_page, pipe, monkeypatch):
    clicked, plain = threading.Event(), pipe.stream_image

    def waiting(*arguments, **options):
        for at in plain(*arguments, **options):
            yield at
            clicked.wait(timeout=WAIT / 1000)

    monkeypatch.setattr(pipe, "stream_image", waiting)
    page, _ = open_page()
    message = page.locator("#generate-message")
    quick(page, "Generate", "")
    stop = page.get_by_role("button", name="Stop").locator("visible=true")
    stop.click()
    message.get_by_text("Nothing is running.").wait_for()
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#generated figcaption").get_by_text("Step 1 of 4").wait_for()
    with page.expect_response(re.compile("/run/")):
        stop.click()
    message.get_by_text("Stopping …").wait_for()
    clicked.set()
    message.get_by_text("Stopped.").wait_for()
    # The model is free for the next one.
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#generated a.download").wait_for()


def test_an_image_appears_step_by_step(open_page):
    page, _ = open_page()
    page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => {
        const found = document.querySelector('#generated figcaption');
        if (found) window.seen.push(found.innerText)
        }).observe(document.body, {subtree: true, childList: true, characterData: true}) }"""
    )
    quick(page, "Generate", "")
    settle(page, "number input for Steps", 12)
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#generated a.download").wait_for()
    seen = dict.fromkeys(page.evaluate("window.seen"))
    assert sum(text.startswith("Step ") for text in seen) >= 3, seen
    data = page.locator("#generated img").get_attribute("src").partition(",")[2]
    assert data


def test_on_a_phone_results_and_errors_are_on_screen(open_page, xray_png):
    page, _ = open_page(390, 844)
    page.get_by_role("button", name="Settings").click()
    settle(page, "number input for Maximum length", 4)
    page.evaluate("scrollTo(0, 0)")
    upload(page, "text.png", b"This is a text.")
    wait_in_view(page, "#report-message [role=alert]")
    page.evaluate("scrollTo(0, 0)")
    upload(page, "xray.png", xray_png)
    page.locator("#report-message").get_by_text("Done.").wait_for()
    wait_in_view(page, "#report textarea")

    open_tab(page, "Generate")
    page.evaluate("scrollTo(0, 0)")
    page.get_by_label("Findings").locator("visible=true").fill("")
    page.get_by_role("button", name="Generate", exact=True).click()
    wait_in_view(page, "#generate-message [role=alert]")

    quick(page, "Compare", "A: ", "B: ")
    both = page.get_by_role("button", name="Generate both")
    both.click()
    page.locator("#compared-b a.download").wait_for()
    for side in "ab":
        wait_in_view(page, f"#compared-{side} img")
    a, b = (page.locator(f"#compared-{side} img").bounding_box() for side in "ab")
    assert a["y"] == b["y"]
    assert a["x"] + a["width"] <= b["x"]
    page.get_by_label("Findings").locator("visible=true").fill("")
    both.click()
    wait_in_view(page, "#compare-message [role=alert]")


def test_both_images_of_a_comparison_are_on_a_low_screen(open_page):
    page, _ = open_page(1366, 768)
    quick(page, "Compare", "A: ", "B: ")
    page.evaluate("scrollTo(0, 0)")
    page.get_by_role("button", name="Generate both").click()
    page.locator("#compared-b a.download").wait_for()
    for side in "ab":
        wait_in_view(page, f"#compared-{side} img")


def test_arrow_keys_on_tabs(open_page):
    page, _ = open_page()
    page.get_by_role("tab", name="Report").focus()
    selected = page.locator("[role=tab][aria-selected=true]")
    for key, name in (
        ("ArrowRight", "Files"), ("ArrowRight", "Generate"), ("ArrowLeft", "Files"),
        ("End", "Session"), ("ArrowRight", "Report"), ("ArrowLeft", "Session"), ("Home", "Report"),
    ):  # fmt: skip
        page.keyboard.press(key)
        selected.get_by_text(name).wait_for()
        assert page.evaluate("document.activeElement.innerText") == name
    # In a text they move the cursor.
    field = page.locator("#report textarea")
    field.focus()
    page.keyboard.press("ArrowRight")
    assert selected.inner_text() == "Report"


def test_zoom_and_contrast_of_an_xray(open_page, xray_png):
    page, _ = open_page()
    page.get_by_role("button", name="Settings").click()
    settle(page, "number input for Maximum length", 1)
    upload(page, "xray.png", xray_png)
    image = page.locator("#xray img")
    image.wait_for()
    page.locator("#xray summary").click()
    before = image.bounding_box()
    page.get_by_label("Zoom", exact=True).fill("2")
    assert image.bounding_box()["width"] == pytest.approx(2 * before["width"], abs=1)
    film = page.locator("#xray .film")
    # The middle stays in the middle.
    assert film.evaluate("e => [e.scrollLeft > 0, e.scrollTop > 0]") == [True, True]
    assert film.bounding_box()["width"] == pytest.approx(before["width"], abs=20)
    page.get_by_label("Contrast", exact=True).fill("1.5")
    assert image.evaluate("e => getComputedStyle(e).filter") == "brightness(1) contrast(1.5)"
    page.get_by_role("button", name="Reset", exact=True).click()
    assert image.evaluate("e => getComputedStyle(e).filter") == "brightness(1) contrast(1)"
    assert image.bounding_box() == before


_FAINT = """() => {
  // The ratio of contrast of each visible text to what is behind it, by WCAG's formula.
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true})
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1)
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data
    return [r, g, b, a / 255]
  }
  const over = ([r, g, b, a], [x, y, z]) => [r*a + x*(1-a), g*a + y*(1-a), b*a + z*(1-a), 1]
  const luminance = rgb => {
    const [r, g, b] = rgb.slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const behind = e => {
    if (!e) return [255, 255, 255, 1]
    const own = rgba(getComputedStyle(e).backgroundColor)
    return own[3] === 1 ? own : over(own, behind(e.parentElement))
  }
  const faint = []
  for (const e of document.querySelectorAll("body *")) {
    const text = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())
    if (!text || !e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue
    if (!e.getClientRects().length || e.closest("style, script, noscript")) continue
    const ground = behind(e), ink = over(rgba(getComputedStyle(e).color), ground)
    const [low, high] = [luminance(ink), luminance(ground)].sort((a, b) => a - b)
    const ratio = (high + 0.05) / (low + 0.05)
    if (ratio < 4.5) faint.push([e.innerText.slice(0, 40), ratio.toFixed(2)])
  }
  return faint
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_are_legible_in_both_colour_schemes(open_page, scheme):
    page, _ = open_page(color_scheme=scheme)
    brightness = page.evaluate("getComputedStyle(document.body).backgroundColor")
    levels = [int(level) for level in re.findall(r"\d+", brightness)[:3]]
    assert (max(levels) < 64) == (scheme == "dark"), brightness
    for tab in ("Report", "Files", "Generate", "Compare", "Session"):
        open_tab(page, tab)
        assert page.evaluate(_FAINT) == [], tab
