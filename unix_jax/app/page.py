"""The Gradio page: tabs over `ReportActions` and `ImageActions`.

All events that run the model share one queue and run one at a time. The visitor's data is in the
states of the session.
"""

import html
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from unix_jax import __version__
from unix_jax.app.actions import NO_IMAGE, Requests, Stop
from unix_jax.app.bundled import Example, example_texts, example_xrays
from unix_jax.app.choices import Limits, default_tokens
from unix_jax.app.figures import data_address, empty_figure, said, session_figures
from unix_jax.app.image_actions import ImageActions
from unix_jax.app.image_models import Field, ImageModel, Slider, Whole, image_model
from unix_jax.app.report_actions import NO_XRAY, ReportActions
from unix_jax.app.style import require_gradio
from unix_jax.errors import UniXError
from unix_jax.inference.diffusion import DiffusionPipeline
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.inference.programs import ProgramBudget
from unix_jax.preprocessing.images import FORMATS, load_image


class Texts(NamedTuple):
    """Texts of a page: its title in the browser, its heading, the lines below, an empty session."""

    title: str
    heading: str
    notice: str
    empty: str


REPORTS_AND_IMAGES = Texts(
    "UniX: chest X-rays",
    "UniX: chest X-ray reports and images",
    '<p class="warning-line" role="note">Research software, not a medical device. Not for '
    "diagnosis or treatment; do not upload images of patients who can be identified.</p>",
    "Generated images and reports appear here.",
)
IMAGES_ONLY = Texts(
    "Chest X-rays from text",
    "Chest X-ray images from text",
    '<p class="warning-line" role="note">Research software, not a medical device. Not for '
    "diagnosis or treatment.</p>"
    "<p>This checkpoint generates images only. It cannot write reports.</p>",
    "Generated images appear here.",
)
SWEEP_SECONDS, FILE_SECONDS = (
    60,
    600,
)  # interval between deletions of uploaded files, and their maximum age
SESSION_SECONDS = 3600
MODEL: dict[str, Any] = {
    "concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal"
}  # fmt: skip
_SHOW_REPORT = """() => {
  if (window.innerWidth < 640) {
    document.querySelector("#report").scrollIntoView({block: "start", behavior: "smooth"})
  }
}"""
# On a low screen the images are below the button.
_SHOW_COMPARED = """() => {
  if (document.querySelector("#compared").getBoundingClientRect().bottom > window.innerHeight) {
    document.querySelector("#compare-buttons").scrollIntoView({block: "start", behavior: "smooth"})
  }
}"""
_COPY = f"""(text) => {{
  if (navigator.clipboard) {{
    navigator.clipboard.writeText(text)
  }} else {{
    document.querySelector("#report textarea").select()
    document.execCommand("copy")
  }}
  return {json.dumps(said("Copied."))}
}}"""
# Outside of the queue: visitors must be able to stop a request while the queue is full.
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def build_page(pipe: UniXPipeline | DiffusionPipeline, limits: Limits, model: str = "") -> Any:
    """The page as a `gradio.Blocks`, not yet served; `model` is the model's name.

    With a diffusers checkpoint it has the tabs that generate images alone.
    """
    gr = require_gradio()
    texts = IMAGES_ONLY if isinstance(pipe, DiffusionPipeline) else REPORTS_AND_IMAGES
    shared: dict[str, Any] = {
        "limits": limits, "unchanged": gr.skip(), "programs": ProgramBudget(limits.programs),
        "empty": texts.empty,
    }  # fmt: skip
    images = ImageActions(images=image_model(pipe, limits), **shared)
    reports = None
    if not isinstance(pipe, DiffusionPipeline):
        reports = ReportActions(pipe=pipe, model=model, **shared)
    with gr.Blocks(
        title=texts.title,
        analytics_enabled=False,
        # By age, not when read: two visitors may have sent the same file.
        delete_cache=(SWEEP_SECONDS, FILE_SECONDS),
    ) as page:
        gr.HTML(f"<h1>{texts.heading}</h1>{texts.notice}", js_on_load=None)
        session = gr.State((), time_to_live=SESSION_SECONDS)
        gallery = gr.HTML(session_figures([], texts.empty), render=False, js_on_load=None)
        read = gr.Button("Read the last image", size="sm", min_width=140, render=False)
        with gr.Tabs(overflow_behavior="wrap") as tabs:
            if reports is not None:
                with gr.Tab("Report", id="report"):
                    reading = _report_tab(gr, reports, session, gallery)
                with gr.Tab("Files"):
                    _files_tab(gr, reports)
            with gr.Tab("Generate"):
                _generate_tab(gr, images, session, gallery, [read] if reports else [])
            with gr.Tab("Compare"):
                _compare_tab(gr, images, session, gallery)
            with gr.Tab("Session"):
                gallery.render()
                clear = gr.Button("Clear this session")
                message = gr.HTML(js_on_load=None)
                clear.click(
                    images.clear, None, [session, gallery, message], api_visibility="private"
                )
        if reports is not None:
            shown = read.click(
                lambda: gr.Tabs(selected="report"), None, tabs,
                api_visibility="private", show_progress="hidden",
            )  # fmt: skip
            reading(shown.then, reports.read_generated, [session])
        gr.HTML(f'<p class="about">{_about(images.images, model)}</p>', js_on_load=None)
    return page


def _about(images: ImageModel[Any], model: str) -> str:
    millions = sum(leaf.size for leaf in jax.tree.leaves(images.params)) / 1e6
    return (
        f"Model: {html.escape(model or 'unnamed')}, {millions:,.1f} million parameters, images of "
        f"up to {images.size} pixels. Software: unix-jax {__version__}."
    )


def _report_tab(gr: Any, actions: ReportActions, session: Any, gallery: Any) -> Any:
    """Returns a function that makes an event read an X-ray and write its report."""
    limits, xray = actions.limits, gr.State(None, time_to_live=SESSION_SECONDS)
    stopped = gr.State(Stop())
    examples = _readable_examples(actions)
    with gr.Row():
        with gr.Column(min_width=300):
            upload = gr.File(
                label="Chest X-ray",
                type="binary",
                height=200,
                elem_id="upload",
            )
        with gr.Column(min_width=300):
            gr.HTML(
                f"<p>{', '.join(FORMATS)} or DICOM, at most {limits.upload_bytes / 2**20:g} MB."
                f"{' Or an example:' if examples else ''}</p>{_example_images(examples)}",
                js_on_load=None,
            )
            with gr.Row(elem_id="examples"):
                buttons = [
                    gr.Button(example.name, elem_id=f"example-{i}", size="sm", min_width=120)
                    for i, (example, _) in enumerate(examples)
                ]
    with gr.Row():
        with gr.Column(min_width=300):
            figure = gr.HTML(empty_figure(NO_XRAY), js_on_load=None, elem_id="xray")
        with gr.Column(min_width=300):
            # Editable: a field that is not cannot be reached by keyboard.
            report = gr.Textbox(
                label="Report", lines=8, max_lines=30, interactive=True, elem_id="report"
            )  # fmt: skip
            message = gr.HTML(said(""), js_on_load=None, elem_id="report-message")
            with gr.Row():
                write = gr.Button("Write the report", variant="primary", min_width=140)
                stop = gr.Button("Stop", min_width=70, scale=0)
                copy = gr.Button("Copy", min_width=70, scale=0)
            parts = gr.HTML("", js_on_load=None, elem_id="report-sections")
            with gr.Accordion("Settings", open=False):
                choices = _report_fields(gr, actions)
    given, written = (
        [stopped, session, xray, *choices],
        [report, parts, session, gallery, message],
    )
    write.click(actions.begin, stopped, message, **AT_ONCE).then(
        actions.write_report, given, written,
        api_name="report", show_progress_on=message, **MODEL,
    )  # fmt: skip
    _stops(stop, actions, stopped, message)

    # The library's own button for this takes the name of the field away from screen readers.
    copy.click(None, report, message, js=_COPY, api_visibility="private")

    def reading(event: Any, read: Any, inputs: list[Any], **options: Any) -> Any:
        found = event(
            read, [stopped, *inputs], [xray, figure, report, parts, message],
            show_progress="hidden", **({"api_visibility": "private"} | options),
        )  # fmt: skip
        # On a narrow screen the report is below the upload.
        found.then(None, None, None, js=_SHOW_REPORT, api_visibility="private")
        found.then(
            actions.write_after_reading, given, written,
            api_visibility="private", show_progress_on=message, **MODEL,
        )  # fmt: skip
        return found

    uploaded = reading(
        upload.upload, actions.read_upload, [upload], api_name="upload", api_visibility="public"
    )
    # The file is read: the field is empty again for the next one.
    uploaded.then(lambda: None, None, upload, api_visibility="private", show_progress="hidden")
    for button, (example, _) in zip(buttons, examples, strict=True):
        reading(button.click, _reading(actions, example), [])
    return reading


def _report_fields(gr: Any, actions: ReportActions) -> list[Any]:
    limits = actions.limits
    return [
        gr.Textbox(
            label="Instruction", lines=2,
            info="Empty: " + actions.pipe.config.asked.default,
            max_length=limits.prompt_letters,
        ),
        gr.Slider(
            1, limits.new_tokens, default_tokens(actions.pipe.config, limits), step=1,
            label="Maximum length", info="In tokens",
        ),
        gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0 decodes greedily"),
        gr.Slider(0.05, 1, 1, step=0.05, label="Nucleus", info="Probability mass"),
        gr.Number(0, label="Seed", precision=0),
    ]  # fmt: skip


def _files_tab(gr: Any, actions: ReportActions) -> None:
    limits, stopped = actions.limits, gr.State(Stop())
    files = gr.File(
        label="Chest X-rays", file_count="multiple", type="filepath", height=200, elem_id="files"
    )
    gr.HTML(f"<p>At most {limits.files} files, one report for each.</p>", js_on_load=None)
    with gr.Row():
        write = gr.Button("Write the reports", variant="primary", min_width=140)
        stop = gr.Button("Stop", min_width=70, scale=0)
    message = gr.HTML(said(""), js_on_load=None, elem_id="files-message")
    found = gr.HTML("", js_on_load=None, elem_id="files-table")
    with gr.Accordion("Settings", open=False):
        choices = _report_fields(gr, actions)
    write.click(actions.begin, stopped, message, **AT_ONCE).then(
        actions.read_files, [stopped, files, *choices], [found, message],
        api_name="files", show_progress_on=message, **MODEL,
    )  # fmt: skip
    _stops(stop, actions, stopped, message)


def _generate_tab(
    gr: Any, actions: ImageActions, session: Any, gallery: Any, further: Sequence[Any]
) -> None:
    """`further`: buttons below the image."""
    with gr.Row(elem_id="generate-row"):
        with gr.Column(min_width=300):
            prompt = _prompt_field(gr, actions)
            with gr.Row():
                generate = gr.Button("Generate", variant="primary", min_width=140)
                stop = gr.Button("Stop", min_width=70, scale=0)
            with gr.Column(elem_id="generate-settings"):
                settings = _fields(gr, actions.images.own)
                chance = gr.Button("Random seed", size="sm", min_width=120)
                count = gr.Slider(
                    1, actions.limits.images, 1, step=1, label="Images",
                    info="Each further image uses the next seed",
                )  # fmt: skip
                with gr.Accordion("More settings", open=False):
                    common = _fields(gr, actions.images.common)
        with gr.Column(min_width=300):
            figure = gr.HTML(empty_figure(NO_IMAGE), js_on_load=None, elem_id="generated")
            message = gr.HTML(said(""), js_on_load=None, elem_id="generate-message")
            for button in further:
                button.render()
    chance.click(
        None, None, settings[0], js="() => Math.floor(Math.random() * 2 ** 32)",
        api_visibility="private",
    )  # fmt: skip
    stopped = gr.State(Stop())

    def generated(stop: Stop, kept: Any, text: Any, images: Any, *choices: Any) -> Any:
        yield from actions.generate(stop, kept, text, *choices, count=images)

    generate.click(actions.begin, stopped, message, **AT_ONCE).then(
        generated, [stopped, session, prompt, count, *settings, *common],
        [figure, session, gallery, message],
        api_name="generate", show_progress_on=message, **MODEL,
    )  # fmt: skip
    _stops(stop, actions, stopped, message)


def _compare_tab(gr: Any, actions: ImageActions, session: Any, gallery: Any) -> None:
    prompt = _prompt_field(gr, actions)
    sides = []
    with gr.Row():
        for name, own in zip("AB", actions.images.compared, strict=True):
            with gr.Column(min_width=280):
                sides.append(_fields(gr, own, f"{name}: "))
    with gr.Row(elem_id="compare-buttons"):
        compare = gr.Button("Generate both", variant="primary", min_width=140)
        stop = gr.Button("Stop", min_width=70, scale=0)
    message = gr.HTML(said(""), js_on_load=None, elem_id="compare-message")
    figures = []
    # Side by side on a phone too, directly below the button.
    with gr.Row(elem_id="compared"):
        for name in "ab":
            with gr.Column(min_width=140):
                figures.append(
                    gr.HTML(empty_figure(NO_IMAGE), js_on_load=None, elem_id=f"compared-{name}")
                )
    with gr.Accordion("More settings", open=False):
        common = _fields(gr, actions.images.common)
    first, second = sides
    stopped = gr.State(Stop())
    compare.click(None, None, None, js=_SHOW_COMPARED, api_visibility="private")
    compare.click(actions.begin, stopped, message, **AT_ONCE).then(
        actions.compare, [stopped, session, prompt, *first, *second, *common],
        [*figures, session, gallery, message],
        api_name="compare", show_progress_on=message, **MODEL,
    )  # fmt: skip
    _stops(stop, actions, stopped, message)


def _prompt_field(gr: Any, actions: ImageActions) -> Any:
    texts = example_texts()
    field = gr.Textbox(
        texts[0], label="Findings", info="Findings that the image should show", lines=3,
        max_length=actions.limits.prompt_letters,
    )  # fmt: skip
    with gr.Row():
        for text in texts:
            button = gr.Button(text, size="sm", min_width=140)
            # In the browser: no request is needed to fill in a text.
            button.click(
                None, None, field, js=f"() => {json.dumps(text)}", api_visibility="private"
            )
    return field


def _fields(gr: Any, fields: Sequence[Field], prefix: str = "") -> list[Any]:
    return [_field(gr, field, f"{prefix}{field.label}") for field in fields]


def _field(gr: Any, field: Field, label: str) -> Any:
    info = field.info or None
    match field:
        case Whole():
            return gr.Number(field.value, label=label, precision=0, info=info)
        case Slider():
            return gr.Slider(
                field.low, field.high, field.value, step=field.step, label=label, info=info
            )
    kind = gr.Radio if field.listed else gr.Dropdown
    options = [(name, value) for value, name in field.options.items()]
    return kind(options, value=field.value, label=label, info=info)


def _stops(button: Any, actions: Requests, stopped: Any, message: Any) -> None:
    # Set by the browser: a response of the server could arrive after the request's last message.
    stopping = f"() => {json.dumps(said('Stopping …'))}"
    button.click(None, None, message, js=stopping, api_visibility="private")
    button.click(actions.end, stopped, message, **AT_ONCE)


def _reading(actions: ReportActions, example: Example) -> Any:
    def read(stop: Stop) -> Any:
        yield from actions.read_example(stop, example)

    return read


def _readable_examples(actions: ReportActions) -> list[tuple[Example, str]]:
    """Examples with small images; unreadable ones are skipped."""
    found = []
    for example in example_xrays():
        try:
            image = load_image(example.data)
        except UniXError:
            continue
        image.thumbnail((96, 96))
        found.append((example, data_address(image)))
    return found


def _example_images(examples: list[tuple[Example, str]]) -> str:
    """Each example's image on its button, which keeps its name as a text."""
    rules = (
        f"#example-{i} {{ background-image: url({address}); }}"
        for i, (_, address) in enumerate(examples)
    )
    return f"<style>{' '.join(rules)}</style>"
