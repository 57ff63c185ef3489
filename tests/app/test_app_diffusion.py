"""The page of a diffusers checkpoint: images only."""

import http.client
import io
import json
import re
import urllib.parse

import numpy as np
import pytest
from PIL import Image

from unix_jax.app.actions import Stop
from unix_jax.app.choices import Limits
from unix_jax.app.image_actions import ImageActions
from unix_jax.app.image_models import image_model
from unix_jax.checkpoints.diffusers_checkpoint import import_diffusers
from unix_jax.commands.app import App
from unix_jax.commands.serve import Serve
from unix_jax.errors import UniXError
from unix_jax.inference.programs import ProgramBudget
from unix_jax.preprocessing.transforms import to_gray_pil

SAME = "unchanged"
SETTINGS = (0, 3, 4.0)  # seed, steps, guidance
COMMON = (16, 0.0, "ddim")  # size, rescale, sampler


@pytest.fixture
def actions(diffusion_pipe):
    limits = Limits(session_images=3)
    images = image_model(diffusion_pipe, limits)
    shared = {"limits": limits, "unchanged": SAME, "empty": ""}
    return ImageActions(images=images, programs=ProgramBudget(8), **shared)


def test_a_generated_image(actions, diffusion_pipe):
    items = list(actions.generate(Stop(), (), "left", *SETTINGS, *COMMON))
    assert sum("<progress" in figure for figure, *_ in items) == 2
    figure, (finished,), gallery, message = items[-1]
    assert "seed 0, 3 DDIM steps, guidance 4, 16 × 16" in figure
    assert finished.file_name in gallery
    assert "per step. Kept under Session.</p>" in message
    file = Image.open(io.BytesIO(finished.png))
    assert file.text["sampler"] == "ddim"
    assert file.text["guidance_scale"] == "4.0"
    (expected,) = diffusion_pipe.generate_image(
        "left", num_inference_steps=3, guidance_scale=4.0, output_type="np"
    )
    assert np.array_equal(file, to_gray_pil(expected))


def test_several_images(actions):
    *_, (figure, kept, _, _) = actions.generate(Stop(), (), "left", *SETTINGS, *COMMON, count=2)
    assert [image.choices.seed for image in kept] == [0, 1]
    assert "left_seed1.png" in figure


@pytest.mark.extended
@pytest.mark.parametrize("size", [4, 8, 12])
def test_other_settings(actions, size):
    common = (size, 0.5, "euler")
    *_, (figure, (found,), _, _) = actions.generate(Stop(), (), "left", *SETTINGS, *common)
    assert f"3 Euler steps, guidance 4, rescaled by 0.5, {size} × {size}" in figure
    assert Image.open(io.BytesIO(found.png)).size == (size, size)
    *_, item = actions.generate(Stop(), (), "left", 0, 3, 1, size, 0, "ddim")
    assert "guidance 1" in item[0]


def test_a_comparison(actions):
    *_, item = actions.compare(Stop(), (), "left", 0, 3, 3.0, 1, 3, 4.0, *COMMON)
    assert [image.choices.settings.guidance_scale for image in item[2]] == [3.0, 4.0]
    assert "Done." in item[-1]


@pytest.mark.filterwarnings("ignore:texts cut off")
def test_a_text_that_is_cut_off(actions):
    *_, item = actions.generate(Stop(), (), "left " * 15, *SETTINGS, *COMMON)
    assert "reads 10 tokens of a text: the last 5 tokens of this one had no effect." in item[-1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("", *SETTINGS, *COMMON), "Findings: expected a text"),
        (("a", None, 3, 4.0, *COMMON), "Seed: expected a number"),
        (("a", 0, 0, 4.0, *COMMON), "Steps: expected a number from 1 to 200"),
        (("a", 0, 201, 4.0, *COMMON), "Steps: expected a number from 1 to 200"),
        (("a", 0, 3, 0.5, *COMMON), "Guidance: expected a number from 1"),
        (("a", *SETTINGS, 24, 0.0, "ddim"), "Size: expected one of 4, 8, 12, 16, found 24"),
        (("a", *SETTINGS, [16], 0.0, "ddim"), "Size: expected one of"),
        (("a", *SETTINGS, 16, 2, "ddim"), "Guidance rescale: expected a number from 0 to 1"),
        (("a", 0, 3, 1, 16, 0.5, "ddim"), "Guidance rescale: expected 0 without guidance"),
        (("a", *SETTINGS, 16, 0.0, "heun"), "Sampler: expected one of ddim, euler"),
        (("a", *SETTINGS, 16, 0.0, None), "Sampler: expected one of ddim, euler, found nothing"),
    ],
)
def test_bad_settings_are_one_message(actions, values, expected):
    (item,) = actions.generate(Stop(), (), *values)
    assert item[1:3] == (SAME, SAME)
    assert 'role="alert"' in item[-1]
    assert expected in item[-1]


def test_numbers_of_steps_share_programs(actions):
    images = actions.images

    def programs(*settings):
        return images.programs(images.choices("a", *settings))

    base = programs(*SETTINGS, *COMMON)
    assert programs(7, 60, 9.0, 16, 0.5, "ddim") == base
    others = {
        programs(0, 70, 4.0, *COMMON),
        programs(0, 3, 1.0, *COMMON),
        programs(*SETTINGS, 8, 0.0, "ddim"),
        programs(*SETTINGS, 16, 0.0, "euler"),
    }
    assert base not in others
    assert len(others) == 4


def test_the_fields(actions):
    sizes, _, sampler = actions.images.common
    assert list(sizes.options) == [4, 8, 12, 16]
    assert sizes.value == 16
    assert sampler.value == "ddim"
    assert actions.images.size == "16 × 16"


# ------------------------------------------------------------------------- the served page


@pytest.fixture(scope="module")
def address(diffusion_pipe):
    pytest.importorskip("gradio", reason="the extra [app] is not installed")
    from unix_jax.app.server import serving

    with serving(diffusion_pipe, port=0, model="toy") as found:
        yield found.rstrip("/")


def answer(address, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=60)
    connection.request(method, path, body, headers or {})
    found = connection.getresponse()
    return found.status, found.read()


def test_the_tabs_and_the_texts(address):
    status, body = answer(address, "GET", "/config")
    assert status == 200
    config = json.loads(body)
    shown = [component["props"] for component in config["components"]]
    tabs = [c["props"]["label"] for c in config["components"] if c["type"] == "tabitem"]
    assert tabs == ["Generate", "Compare", "Session"]
    text = " ".join(str(props.get("value")) for props in shown)
    assert "This checkpoint generates images only." in text
    assert "Research software, not a medical device" in text
    assert re.search(r"Model: toy, 0\.\d million parameters, images of up to 16 × 16 pixels", text)
    assert "Generated images appear here." in text
    assert "Read the last image" not in text
    assert not any(c["type"] == "file" for c in config["components"])


def test_an_image_through_the_client(address):
    from gradio_client import Client

    client = Client(address, verbose=False)
    figure, gallery, message = client.predict("left", 1, *SETTINGS, *COMMON, api_name="/generate")
    assert "data:image/png" in figure
    assert "left_seed0.png" in gallery
    assert "Done in" in message
    *_, message = client.predict("left", 1, 0, 3, 1, 16, 0.5, "ddim", api_name="/generate")
    assert 'role="alert"' in message


def test_uploads_are_refused(address):
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert answer(address, "POST", "/gradio_api/upload", b"x", form) == (404, b"Not found.")


@pytest.mark.extended
@pytest.mark.parametrize("width", [1366, 390])
def test_in_a_browser(address, browser, width):
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.set_default_timeout(60_000)
    page.goto(address)
    page.get_by_role("button", name="Random seed").click()
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#generated figcaption").get_by_text("Step ").wait_for()
    page.locator("#generated a.download").wait_for()
    for tab in ("Generate", "Compare", "Session"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("ul.session figure").locator("visible=true").count() == 1
    page.close()


# ------------------------------------------------------------------------- command line


class Served(Exception):
    pass


@pytest.mark.parametrize(
    "imported", [False, pytest.param(True, marks=pytest.mark.extended)], ids=["folder", "imported"]
)
def test_the_command(imported, diffusers_folder, monkeypatch, tmp_path, capsys):
    pytest.importorskip("gradio", reason="the extra [app] is not installed")
    from unix_jax.app import server

    checkpoint = diffusers_folder
    if imported:
        checkpoint = tmp_path / "jax"
        import_diffusers(diffusers_folder, checkpoint)

    def serving(pipe, *_):
        raise Served(type(pipe).__name__)

    monkeypatch.setattr(server, "serving", serving)
    with pytest.raises(Served, match="DiffusionPipeline"):
        App(checkpoint=str(checkpoint)).run()
    assert "images: ready" in capsys.readouterr().out


def test_options_and_commands_that_are_refused(diffusers_folder):
    pytest.importorskip("gradio", reason="the extra [app] is not installed")
    with pytest.raises(UniXError, match="--max-megapixels: has no effect with a diffusers"):
        App(checkpoint=str(diffusers_folder), max_megapixels=9).run()
    pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
    expected = "expected a checkpoint of UniX, found a diffusers checkpoint, which `unix-jax gen"
    with pytest.raises(UniXError, match=expected):
        Serve(checkpoint=str(diffusers_folder), port=0).run()
