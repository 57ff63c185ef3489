"""What pyproject.toml cannot say: files beside the package that the wheel carries, and its README.

An installation outside a clone has `configs/`, the examples and the golden files of toy size in
`unix_jax/bundled`, see `unix_jax.storage.bundled`. An editable installation uses the clone's own.
"""

import os
import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
BUNDLED = (
    "configs/*.py",
    "examples/*.jpg",
    "examples/ATTRIBUTION.md",
    "examples/cxr/**/*",
    "examples/nano/**/*",
    "examples/nano_tokenizer/*",
    "tests/golden/tiny/**/*",
)
# A target that is not a file of the repository.
_ELSEWHERE = r"[a-z]+:|#"
_ATTRIBUTE = re.compile(r'\b(?P<name>src|srcset|href)="(?P<target>[^"]*)"')
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


class BuildWithBundle(build_py):
    """Copies the bundled files into the build of a wheel."""

    def run(self) -> None:
        super().run()
        target = Path(self.build_lib) / "unix_jax" / "bundled"
        shutil.rmtree(target, ignore_errors=True)
        if self.editable_mode:
            return
        for pattern in BUNDLED:
            files = [file for file in ROOT.glob(pattern) if file.is_file()]
            if not files:
                raise FileNotFoundError(f"{pattern}: expected files to bundle, found none")
            for file in files:
                copy = target / file.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)


def description(text: str, address: str | None) -> str:
    """README.md for a package index, where links to files of the repository lead nowhere.

    With the repository's address they are made absolute, in Markdown and in HTML; without it, text
    is left of them, and nothing of images.
    """

    def located(target: str, kind: str) -> str:
        if address is None or re.match(_ELSEWHERE, target):
            return target
        return f"{address.rstrip('/')}/{kind}/main/{target}"

    def link(match: re.Match[str]) -> str:
        if address is None and not re.match(_ELSEWHERE, match["target"]):
            return "" if match["image"] else match["text"]
        target = located(match["target"], "raw" if match["image"] else "blob")
        return f"{match['image']}[{match['text']}]({target})"

    def attribute(match: re.Match[str]) -> str:
        kind = "blob" if match["name"] == "href" else "raw"
        return f'{match["name"]}="{located(match["target"], kind)}"'

    if address is None:
        text = re.sub(r"<picture>.*?</picture>\n*", "", text, flags=re.DOTALL)
    return _ATTRIBUTE.sub(attribute, _LINK.sub(link, text))


address = os.environ.get("UNIX_JAX_REPOSITORY_URL") or None
setup(
    cmdclass={"build_py": BuildWithBundle},
    long_description=description((ROOT / "README.md").read_text(encoding="utf-8"), address),
    long_description_content_type="text/markdown",
    project_urls={} if address is None else {"Source": address},
)
