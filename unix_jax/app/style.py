"""Style of the page: fonts of the visitor's own machine, a layout for narrow screens, and keys."""

from typing import Any

from unix_jax.extras import require

_CSS = """
.gradio-container { max-width: 1100px !important; margin: 0 auto !important; }
.warning-line {
  border-left: 4px solid #b45309; padding: .5rem .75rem; margin: .25rem 0;
  background: color-mix(in srgb, #f59e0b 12%, transparent); font-weight: 600;
}
body:not(.dark) { --color-accent: #2563eb; }
.gradio-container h1 {
  font-size: clamp(1.25rem, 4.5vw, 1.7rem) !important; line-height: 1.25 !important;
}
figure.xray { margin: 0; display: grid; gap: .5rem; justify-items: center; }
figure.xray > img {
  width: min(100%, 512px); aspect-ratio: auto; height: auto; max-height: 70vh; object-fit: contain;
  background: #000; border-radius: 6px;
}
figure.xray figcaption { text-align: center; text-wrap: balance; overflow-wrap: anywhere; }
figure.xray p { margin: 0; text-align: center; overflow-wrap: anywhere; }
figure.viewer > .film {
  width: min(100%, 512px); max-height: 70vh; overflow: auto; background: #000; border-radius: 6px;
}
figure.viewer > .film > img {
  width: calc(100% * var(--zoom, 1)); max-width: none; max-height: calc(70vh * var(--zoom, 1));
  object-fit: contain; filter: brightness(var(--brightness, 1)) contrast(var(--contrast, 1));
}
figure.viewer > details { width: min(100%, 512px); }
figure.viewer summary { cursor: pointer; padding: .5rem 0; }
figure.viewer label { display: grid; grid-template-columns: 6.5rem 1fr; align-items: center; }
figure.viewer input { min-height: 2rem; }
button.reset {
  padding: .4rem .8rem; border-radius: 6px; border: 1px solid var(--border-color-primary);
}
figure.xray progress { width: min(100%, 512px); }
.xray.empty {
  display: grid; place-items: center; min-height: 14rem; padding: 1rem; text-align: center;
  border: 1px dashed var(--border-color-primary); border-radius: 6px;
}
a.download {
  display: inline-block; padding: .6rem 1rem !important; border-radius: 6px;
  text-decoration: none !important;
  border: 1px solid var(--border-color-primary); color: var(--body-text-color) !important;
}
#examples {
  display: grid; gap: .5rem; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr));
}
#examples:not(:has(button)) { display: none; }
#examples button {
  padding: .5rem .5rem .5rem 72px; min-width: 0; min-height: 64px; text-align: left;
  justify-content: flex-start; white-space: normal; overflow-wrap: anywhere;
  background-repeat: no-repeat; background-size: 56px 56px; background-position: 4px center;
}
ul.session {
  list-style: none !important; padding: 0 !important; margin: 0; display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 220px), 1fr));
}
ul.session li { margin: 0 !important; padding: 0 !important; list-style: none !important; }
ul.session figure.xray > img { width: 100%; }
p.said, p.complaint { margin: 0; padding: .5rem .75rem; border-radius: 6px; min-height: 1.5rem; }
p.complaint {
  border-left: 4px solid #dc2626; font-weight: 600; overflow-wrap: anywhere;
  background: color-mix(in srgb, #dc2626 10%, transparent);
}
.report h3 { margin: .75rem 0 .25rem !important; font-size: 1rem !important; }
.report p { margin: 0 0 .5rem !important; overflow-wrap: anywhere; }
figure.xray .report p { text-align: left; }
p.truth { margin: .5rem 0; }
table.reports { width: 100%; border-collapse: collapse; }
table.reports :is(th, td) {
  padding: .5rem; text-align: left; vertical-align: top; overflow-wrap: anywhere;
  border-bottom: 1px solid var(--border-color-primary);
}
table.reports th[scope=row] { width: 30%; font-weight: 600; }
p.about { margin: 1rem 0 0; font-size: .85rem; color: var(--body-text-color-subdued); }
@media (max-width: 640px) {
  .gradio-container .main { padding: 12px !important; min-width: 0; }
  .gradio-container { min-width: 0 !important; width: 100%; }
  /* The image directly below the button that generates it; the settings after it. */
  #generate-row > .column:first-child { display: contents; }
  #generate-settings { order: 2; }
  #generate-row > .column:last-child { order: 1; }
  #generate-message { order: -1; }
}
:focus-visible { outline: 3px solid #2563eb !important; outline-offset: 2px; }
"""

_SCRIPT = """
// Arrow keys, Home and End on the tabs: the library's own tabs know Tab and Enter alone.
document.addEventListener("keydown", (event) => {
  const tab = event.target.closest("[role=tab]");
  if (!tab || event.altKey || event.ctrlKey || event.metaKey) return;
  const tabs = [...tab.closest("[role=tablist]").querySelectorAll("[role=tab]")];
  const at = tabs.indexOf(tab), last = tabs.length - 1;
  const to = {
    ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at === 0 ? last : at - 1, Home: 0, End: last
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  tabs[to].click();
  tabs[to].focus();
});
// The sliders below an X-ray; the center of what is visible stays where it is.
function showXray(figure, name, value) {
  const film = figure.querySelector(".film");
  const x = (film.scrollLeft + film.clientWidth / 2) / film.scrollWidth;
  const y = (film.scrollTop + film.clientHeight / 2) / film.scrollHeight;
  figure.style.setProperty("--" + name, value);
  film.scrollLeft = x * film.scrollWidth - film.clientWidth / 2;
  film.scrollTop = y * film.scrollHeight - film.clientHeight / 2;
}
document.addEventListener("input", (event) => {
  const figure = event.target.closest("figure.viewer");
  if (figure) showXray(figure, event.target.name, event.target.value);
});
document.addEventListener("click", (event) => {
  if (!event.target.closest("button.reset")) return;
  const figure = event.target.closest("figure.viewer");
  for (const input of figure.querySelectorAll("input")) {
    input.value = 1;
    showXray(figure, input.name, 1);
  }
});
"""

# In the head as it is: the library rewrites the selectors of styles that are given to it.
HEAD = (
    '<meta name="color-scheme" content="light dark">'
    f"<style>{_CSS}</style><script>{_SCRIPT}</script>"
)


def require_gradio() -> Any:
    """The package gradio.

    Raises:
      UniXError: it is not installed.
    """
    return require("gradio", "the page", "unix-jax[app]")


def theme() -> Any:
    """Gradio's plain theme without external fonts."""
    import gradio

    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "Consolas", "monospace"]
    plain = gradio.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=sans, font_mono=mono
    )
    # The library's own grays are too light for small print, and its blue for white print.
    return plain.set(
        block_info_text_color="*neutral_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        block_info_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
    )
