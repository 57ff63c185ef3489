"""Bodies of requests: what is read, and what is refused with which field."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.api_server import chat, data_url, xray
from support.toy_pipelines import small_writing_pipe
from unix_jax.errors import UniXError
from unix_jax.serving.limits import ServeLimits
from unix_jax.serving.refusals import RequestError, request_error
from unix_jax.serving.requests import RequestReader

LIMITS = ServeLimits(batch_sizes=(1, 2, 4), new_tokens=24, body_bytes=2**20, prompt_letters=200)


def reader():
    return RequestReader(small_writing_pipe().loaded, LIMITS, "toy")


def refused(body, read=None):
    with pytest.raises(RequestError) as raised:
        (read or reader().report)(body)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400
    return raised.value


def parts(*items):
    return {"model": "toy", "messages": [{"role": "user", "content": list(items)}]}


IMAGE = {"type": "image_url", "image_url": {"url": data_url(xray())}}


def test_a_report_with_defaults():
    found = reader().report(chat())
    assert (found.max_new_tokens, found.temperature, found.top_p) == (24, 0, 1)
    assert found.prompt == small_writing_pipe().config.asked.default
    assert [image.size for image in found.images] == [(32, 32)]
    assert not found.stream
    assert found.warnings == ()
    assert found.context_tokens > 6


def test_a_report_with_everything():
    body = chat(
        text="Findings?", max_tokens=5, temperature=0.5, top_p=0.9, seed=7, stream=True,
        stream_options={"include_usage": True}, n=1, user="me", stop=None,
    )  # fmt: skip
    found = reader().report(body)
    assert found.prompt == "Findings?"
    assert (found.max_new_tokens, found.temperature, found.top_p, found.seed) == (5, 0.5, 0.9, 7)
    assert found.stream
    assert found.stream_usage


def test_a_black_image_gets_a_warning():
    file = io.BytesIO()
    Image.new("L", (40, 40)).save(file, "PNG")
    (warning,) = reader().report(chat(file.getvalue())).warnings
    assert warning.startswith("messages[0].content[0].image_url.url: the image is nearly black")


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"model": None}, "model", "expected 'toy', found none"),
        ({"model": "gpt-5"}, "model", "expected 'toy', found 'gpt-5'"),
        ({"max_tokens": 0}, "max_tokens", "from 1 to 24, found 0"),
        ({"max_tokens": 25}, "max_tokens", "from 1 to 24, found 25"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "found both"),
        ({"temperature": "hot"}, "temperature", "from 0 to 2"),
        ({"temperature": float("nan")}, "temperature", "from 0 to 2"),
        ({"temperature": True}, "temperature", "from 0 to 2"),
        ({"top_p": 0}, "top_p", "in (0, 1]"),
        ({"seed": 10**400}, "seed", "from 0 to 4294967295"),
        ({"seed": -1}, "seed", "from 0 to 4294967295"),
        ({"seed": 1.5}, "seed", "from 0 to 4294967295"),
        ({"stream": 1}, "stream", "expected true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "without stream"),
        ({"stream": True, "stream_options": 3}, "stream_options", "expected an object"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options", "not supported"),
        ({"n": 2}, "n", "only the value 1"),
        ({"logprobs": 0}, "logprobs", "only the value False"),
        ({"tools": [{}]}, "tools", "only the value []"),
        ({"stop": "."}, "stop", "only the value []"),
        ({"best_of": 2}, "best_of", "not supported"),
        ({"best\ud800": 2}, "best\\ud800", "not supported"),
        ({"messages": None}, "messages", "expected a list of one message"),
        ({"messages": "Report"}, "messages", "found a text"),
        ({"messages": []}, "messages", "found 0 items"),
        ({"messages": [3]}, "messages", "found 1 items"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", "expected 'user'"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages", "found 0"),
        ({"messages": [{"role": "user"}]}, "messages", "expected a list of parts"),
        ({"messages": [{"role": "user", "content": [IMAGE], "x": 1}]}, "messages", "[0].x"),
    ],
)
def test_wrong_fields(fields, param, text):
    error = refused(chat() | fields)
    assert error.param == param
    assert str(error).startswith(param)
    assert text in str(error)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://example.org/x.png", "found a URL of scheme 'https'; this server fetches no"),
        ("file:///etc/passwd", "scheme 'file'"),
        ("/etc/passwd", "expected a data URL"),
        ("data:image/png,abc", "expected a data URL"),
        ("data:image/png;base64,@@@@", "expected base64"),
        ("data:image/png;base64,YWJj", "expected an image with a sound header"),
        ("data:image/png;base64,", "found an empty file"),
        (3, "expected a data URL, found 3"),
        (None, "expected a data URL, found none"),
    ],
)
def test_urls_that_are_no_images(url, text):
    body = parts({"type": "image_url", "image_url": {"url": url}})
    with pytest.raises(UniXError) as raised:
        reader().report(body)
    assert str(raised.value).startswith("messages[0].content[0].image_url.url: ")
    assert text in str(raised.value)
    assert request_error(raised.value).status == 400


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("x", "type: expected 'text' or 'image_url', found None"),
        ({"type": "input_audio"}, "found 'input_audio'"),
        ({"type": "text", "text": 3}, "text: expected a text"),
        ({"type": "text", "text": "a" * 201}, "at most 200 characters"),
        ({"type": "image_url", "image_url": "data:"}, "image_url: expected an object"),
        ({"type": "image_url", "image_url": {"url": "data:", "detail": "low"}}, "detail: only"),
    ],
)
def test_wrong_parts(part, text):
    error = refused(parts(IMAGE, part))
    assert text in str(error)
    assert str(error).startswith("messages[0].content[1]")


def test_texts_that_do_not_fit():
    half = {"type": "text", "text": "a" * 150}
    assert "at most 200 characters" in str(refused(parts(IMAGE, half, half)))
    assert "Unicode" in str(refused(chat(text="\ud800")))
    long = RequestReader(small_writing_pipe().loaded, ServeLimits(new_tokens=250), "toy")
    error = refused(chat(text="§" * 3000), long.report)
    assert str(error).startswith("messages[0].content: expected at most")


def test_several_images():
    assert len(reader().report(parts(*[IMAGE] * 4)).images) == 4
    assert "found 5" in str(refused(parts(*[IMAGE] * 5)))
    one, two = (reader().report(parts(*[IMAGE] * n)) for n in (1, 2))
    assert one.key != two.key


def test_greedy_and_sampled_requests_share_a_batch():
    first, second = (reader().report(chat(temperature=t, top_p=0.5)) for t in (0, 1))
    assert first.key == second.key
    assert (first.top_p, second.top_p) == (1, 0.5)


def image_body(**fields):
    return {"model": "toy", "prompt": "Effusion."} | fields


def test_images_with_defaults():
    found = reader().images(image_body(n=3, seed=5))
    assert found.seeds == (5, 6, 7)
    assert found.rows == 3
    assert (found.settings.height, found.settings.num_inference_steps) == (20, 49)
    assert reader().images(image_body()).seeds != reader().images(image_body()).seeds


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"prompt": None}, "prompt", "found none"),
        ({"prompt": " "}, "prompt", "found none"),
        ({"prompt": 3}, "prompt", "expected a text"),
        ({"n": 5}, "n", "from 1 to 4"),
        ({"size": "1024x1024"}, "size", "20x20"),
        ({"size": 20}, "size", "expected one of"),
        ({"response_format": "url"}, "response_format", "only the value 'b64_json'"),
        ({"num_inference_steps": 201}, "num_inference_steps", "from 1 to 200"),
        ({"guidance_scale": 21}, "guidance_scale", "from 0 to 20"),
        ({"seed": 2**32 - 1, "n": 2}, "seed", "expected at most 4294967294"),
        ({"stream": True}, "stream", "only the value False"),
        ({"style": "vivid"}, "style", "not supported"),
    ],
)
def test_wrong_fields_of_images(fields, param, text):
    error = refused(image_body(**fields), reader().images)
    assert error.param == param
    assert text in str(error)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_body_is_read_or_refused(data):
    """A good body of which one value, at any depth, is replaced."""
    body = chat(text="x", max_tokens=3, stream=True, stream_options={"include_usage": True})
    node, key = body, data.draw(st.sampled_from(sorted(body)))
    while isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
        node = node[key]
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = data.draw(st.sampled_from(keys))
    node[key] = data.draw(_JSON)
    for read in (reader().report, reader().images):
        try:
            read(body)
        except UniXError as error:
            json.dumps(request_error(error).body).encode()
