"""Creates the screenshots of the web page, and the animation of the README.

    python docs/figures/screenshots.py

Needs the extra [app], the package playwright, and a Chromium. The page is served with the bundled
model and used in headless Chromium as a visitor would, with its own settings and examples. Writes
app_report.jpg, app_compare.jpg, app_phone.jpg and app.gif to docs/images. Run it again when the
model or the page changes.
"""

import argparse
import io
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from scipy.spatial import KDTree

from unix_jax import UniXPipeline
from unix_jax.app.server import serving
from unix_jax.errors import UniXError
from unix_jax.storage.bundled import example

IMAGES = Path(__file__).parents[1] / "images"
WAIT = 300_000  # milliseconds; the first request compiles
PAUSE = 0.25  # seconds; see `Paced`
DESKTOP, PHONE, ANIMATION = (1100, 900), (390, 844), (1100, 930)
SHORT, LONG = 160, 2500  # milliseconds of a frame of the animation
GRAYS = 160  # of the 256 colours of the animation
# Times would be those of the machine that ran this script.
NO_TIMES = "#generate-message { display: none }"


class Paced(UniXPipeline):
    """The pipeline, which waits after each token and preview so that a screenshot can show it."""

    def stream_report(self, *arguments: Any, **options: Any) -> Any:
        return self._paced(super().stream_report(*arguments, **options))

    def stream_image(self, *arguments: Any, **options: Any) -> Any:
        return self._paced(super().stream_image(*arguments, **options))

    def _paced(self, steps: Iterator[Any]) -> Iterator[Any]:
        for step in steps:
            yield step
            time.sleep(PAUSE)


def open_page(browser: Browser, address: str, size: tuple[int, int], scale: float = 1) -> Page:
    """The page in a window of that size."""
    width, height = size
    page = browser.new_page(
        viewport={"width": width, "height": height},
        device_scale_factor=scale,
        reduced_motion="reduce",
    )
    page.set_default_timeout(WAIT)
    page.goto(address)
    page.get_by_role("button", name="Write the report").wait_for()
    page.add_style_tag(content=NO_TIMES)
    page.evaluate("document.fonts.ready")
    return page


def shot(page: Page, **options: Any) -> Image.Image:
    """A screenshot."""
    data = page.screenshot(animations="disabled", caret="hide", **options)
    return Image.open(io.BytesIO(data)).convert("RGB")


def save(image: Image.Image, file: Path) -> None:
    """Writes a screenshot as JPEG: X-rays as PNG would be several times as large."""
    image.save(file, quality=85, optimize=True)
    print(file)


def choose_example(page: Page) -> None:
    """Clicks the first example, whose report is then written."""
    page.locator("#examples button").first.click()


def report_written(page: Page) -> bool:
    return page.locator("#report-message").get_by_text("Done.").is_visible()


def generate(page: Page) -> None:
    """Generates with the settings that the page has at first."""
    open_tab(page, "Generate")
    page.get_by_role("button", name="Generate", exact=True).click()


def image_generated(page: Page) -> bool:
    return page.locator("#generated a.download").is_visible()


def compare(page: Page) -> None:
    """Generates both images of a comparison."""
    open_tab(page, "Compare")
    page.get_by_role("button", name="Generate both").click()
    page.locator("#compared-b a.download").wait_for()


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
    page.locator("[role=tab][aria-selected=true]", has_text=name).wait_for()


def until(page: Page, condition: Callable[[Page], bool]) -> None:
    """Waits until a condition of the page holds."""
    for _ in frames_until(page, condition):
        pass


def frames_until(page: Page, condition: Callable[[Page], bool]) -> Iterator[Image.Image]:
    """Screenshots until a condition of the page holds."""
    end = time.monotonic() + WAIT / 1000
    while not condition(page):
        if time.monotonic() > end:
            raise UniXError("the page: no result")
        yield shot(page)


def desktop(browser: Browser, address: str, out: Path) -> None:
    """A report, and a comparison."""
    page = open_page(browser, address, DESKTOP, scale=1.5)
    choose_example(page)
    until(page, report_written)
    save(shot(page, full_page=True), out / "app_report.jpg")
    compare(page)
    save(shot(page, full_page=True), out / "app_compare.jpg")
    page.close()


def phone(browser: Browser, address: str, out: Path) -> None:
    """Three screens side by side: what is visible after a report, an image and a comparison."""
    page = open_page(browser, address, PHONE, scale=1.5)
    screens = []
    choose_example(page)
    until(page, report_written)
    screens.append(shot(page))
    generate(page)
    until(page, image_generated)
    page.locator("#generated img").scroll_into_view_if_needed()
    screens.append(shot(page))
    compare(page)
    screens.append(shot(page))
    page.close()
    gap = 24
    width = sum(screen.width for screen in screens) + gap * (len(screens) - 1)
    strip = Image.new("RGB", (width, screens[0].height), "#808080")
    for i, screen in enumerate(screens):
        strip.paste(screen, (i * (screen.width + gap), 0))
    save(strip, out / "app_phone.jpg")


def animation(browser: Browser, address: str, out: Path) -> None:
    """A report being written, and an image being generated; the times are not the real ones."""
    page = open_page(browser, address, ANIMATION, scale=0.75)
    frames, times = [shot(page)], [LONG // 2]
    for begin, finished, every in (
        (choose_example, report_written, 4),
        (generate, image_generated, 1),
    ):
        begin(page)
        found = distinct([*frames_until(page, finished), shot(page)])
        kept = [*found[:-1][::every], found[-1]]
        frames += kept
        times += [SHORT] * (len(kept) - 1) + [LONG]
    page.close()
    first, *rest = with_one_palette(frames)
    file = out / "app.gif"
    first.save(file, save_all=True, append_images=rest, duration=times, loop=0, optimize=True)
    print(file)


def with_one_palette(frames: list[Image.Image]) -> list[Image.Image]:
    """The frames with at most 256 colours: what does not change is then not stored again.

    The palette has grays from black to white for the X-rays, and the most common other colours.
    """
    height, width = frames[0].height, frames[0].width
    pixels = np.stack([np.asarray(frame) for frame in frames]).reshape(-1, 3)
    codes = pixels @ np.array([65536, 256, 1])
    _, first, inverse, counts = np.unique(
        codes, return_index=True, return_inverse=True, return_counts=True
    )
    colours = pixels[first]
    coloured = np.ptp(colours.astype(int), axis=1) > 2
    common = np.argsort(-counts * coloured, kind="stable")[: min(256 - GRAYS, coloured.sum())]
    shades = np.rint(np.linspace(0, 255, GRAYS)).astype(np.uint8)
    palette = np.concatenate([np.repeat(shades[:, None], 3, axis=1), colours[common]])
    # Pillow's own search for the nearest colour is approximate: white would become light gray.
    _, nearest = KDTree(palette).query(colours)
    indices = nearest.astype(np.uint8)[inverse].reshape(-1, height, width)
    images = [Image.fromarray(index, "P") for index in indices]
    for image in images:
        image.putpalette(palette.tobytes())
    return images


def distinct(frames: list[Image.Image]) -> list[Image.Image]:
    """The frames without those that equal the one before."""
    return [
        frame
        for i, frame in enumerate(frames)
        if i == 0 or frame.tobytes() != frames[i - 1].tobytes()
    ]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", default=example("nano"), help="a model with a tokenizer")
    parser.add_argument("--out", type=Path, default=IMAGES, help="directory of the images")
    parser.add_argument(
        "--only", choices=["desktop", "phone", "animation"], help="one part instead of all"
    )
    arguments = parser.parse_args()
    parts = {"desktop": desktop, "phone": phone, "animation": animation}
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    try:
        pipe = Paced.from_pretrained(arguments.checkpoint)
        with serving(pipe, port=0, model="nano") as address, sync_playwright() as playwright:
            # Root has no sandbox.
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            for name, part in parts.items():
                if arguments.only in (None, name):
                    part(browser, address, arguments.out)
            browser.close()
    except UniXError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
