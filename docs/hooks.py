"""What mkdocs does to a page before it renders it.

Pages link to files beside `docs/`, which a forge shows and the site does not hold: there such a
link becomes the file's path.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import get_plugin_logger

_LOG = get_plugin_logger(__name__)
# A link to a file: neither a picture nor an address nor a place on the same page.
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs with the text of a page; gives the text that is rendered."""
    docs = Path(config.docs_dir).absolute()

    def replaced(link: re.Match[str]) -> str:
        label, target = link.group(1), link.group(2)
        file = Path(os.path.normpath(Path(page.file.abs_src_path).parent / target))
        if file.is_relative_to(docs):
            return link.group(0)
        if not file.exists():
            # A warning, which --strict turns into an error.
            _LOG.warning("%s: %s: no such file", page.file.src_uri, target)
        path = Path(os.path.relpath(file, docs.parent)).as_posix()
        name = path.rsplit("/", 1)[-1]
        return f"`{path}`" if label.strip("`").rstrip("/").endswith(name) else f"{label} (`{path}`)"

    return _LINK.sub(replaced, markdown)
