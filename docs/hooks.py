"""What mkdocs does to the pages: links into the repository, tables without a header, code names.

Pages link to files outside of `docs/`, which a forge shows. With the repository's address in
UNIX_JAX_REPOSITORY_URL such a link leads there. Without it the site contains a page with the
contents of each file that is linked to, and a link to a directory becomes its path.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, InclusionLevel

_LOG = get_plugin_logger(__name__)
# A link to a file: neither an image nor an address nor a position on the same page.
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")
_PICTURE = re.compile(r"<picture>.*?</picture>", re.DOTALL)
_EMPTY_HEADER = re.compile(r"<thead>\s*<tr>\s*(?:<th[^>]*>\s*</th>\s*)+</tr>\s*</thead>")
_CODE = re.compile(r"<code>([^<]+)</code>(?!</pre>)")
_WORD = re.compile(r"[^\s]{1,40}(?!\S)")
_LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".md": "markdown", ".json": "json"}
_SOURCES = "repository"
"""The folder of the site with the contents of files outside of `docs/`."""


def _address() -> str | None:
    return os.environ.get("UNIX_JAX_REPOSITORY_URL", "").rstrip("/") or None


def _page_of(path: str) -> str:
    """The page with the contents of a file of the repository, both as relative paths."""
    return f"{_SOURCES}/{path}.md"


def _target(page: Path, link: str) -> Path:
    return Path(os.path.normpath(page.parent / link))


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs with the files of the site; adds the pages of linked files."""
    docs = Path(config.docs_dir).absolute()
    if _address() is not None:
        return files
    linked: set[Path] = set()
    for file in files.documentation_pages():
        page = Path(file.abs_src_path)
        for _, link, _ in _LINK.findall(page.read_text(encoding="utf-8")):
            target = _target(page, link)
            if target.is_file() and not target.is_relative_to(docs):
                linked.add(target)
    for target in sorted(linked):
        path = target.relative_to(docs.parent).as_posix()
        content = _contents(target, path)
        added = File.generated(
            config, _page_of(path), content=content, inclusion=InclusionLevel.NOT_IN_NAV
        )
        files.append(added)
    return files


def _contents(file: Path, path: str) -> str:
    """A page that shows a file as it is, and that the search leaves out."""
    text = file.read_text(encoding="utf-8")
    head = "---\nsearch:\n  exclude: true\nhide:\n  - toc\n---\n"
    if file.suffix == ".ipynb":
        return f"{head}`{path}`\n\n{_cells(json.loads(text))}\n"
    fence = "`" * (3 + max(map(len, re.findall(r"^`+", text, re.MULTILINE)), default=0))
    language = _LANGUAGES.get(file.suffix, "text")
    return f"{head}# `{path}`\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"


def _cells(notebook: dict[str, Any]) -> str:
    """The texts and the code of a notebook."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        code = cell["cell_type"] == "code"
        parts.append(f"```python\n{source}\n```" if code else source)
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs with the text of a page; returns the text that is rendered."""
    if page.file.src_uri.startswith(f"{_SOURCES}/"):
        return markdown
    if page.is_homepage:
        page.meta.setdefault("hide", ["navigation"])
    docs = Path(config.docs_dir).absolute()

    def replaced(link: re.Match[str]) -> str:
        label, file = link[1], _target(Path(page.file.abs_src_path), link[2])
        if file.is_relative_to(docs):
            return link[0]
        if not file.exists():
            # A warning, which --strict turns into an error.
            _LOG.warning("%s: %s: no such file", page.file.src_uri, link[2])
        path = file.relative_to(docs.parent).as_posix()
        address = _address()
        if address is not None:
            kind = "tree" if file.is_dir() else "blob"
            return f"[{label}]({address}/{kind}/main/{path}{link[3] or ''})"
        if file.is_file():
            here = Path(page.file.src_uri).parent.as_posix()
            return f"[{label}]({os.path.relpath(_page_of(path), here)})"
        name = path.rsplit("/", 1)[-1]
        return f"`{path}`" if label.strip("`").rstrip("/").endswith(name) else f"{label} (`{path}`)"

    return _PICTURE.sub(_schemes, _LINK.sub(replaced, markdown))


def _schemes(picture: re.Match[str]) -> str:
    """An image for each colour scheme of the site, of which the reader's choice shows one."""
    (alt,) = re.findall(r'alt="([^"]*)"', picture[0])
    (dark,) = re.findall(r'srcset="([^"]*)"', picture[0])
    (light,) = re.findall(r'src="([^"]*)"', picture[0])
    return f"![{alt}]({light}#only-light)\n![{alt}]({dark}#only-dark)"


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs with the rendered text; returns it without empty rows of headers.

    Names and options of code get a class, with which the style sheet keeps each on one line.
    """
    return _CODE.sub(_unbroken, _EMPTY_HEADER.sub("", html))


def _unbroken(code: re.Match[str]) -> str:
    """Inline code whose words are not broken in the middle, unless they are very long."""
    text = code[1]
    if len(text) <= 24 or _WORD.fullmatch(text):
        return f'<code class="name">{text}</code>'
    words = re.split(r"(\s+)", text)
    kept = (f'<span class="name">{w}</span>' if _WORD.fullmatch(w) else w for w in words)
    return f"<code>{''.join(kept)}</code>"
