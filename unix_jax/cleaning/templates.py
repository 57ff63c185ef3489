"""Prompts: text files with fields in braces, in the package or the user's own."""

import dataclasses
import hashlib
import re
from importlib import resources
from pathlib import Path

from unix_jax.errors import UniXError

_FIELD = re.compile(r"\{(report|rewrite|reason)\}")
_REQUIRED = {
    "rewrite": {"report"},
    "again": {"reason"},
    "judge": {"report", "rewrite"},
}


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The three texts sent to the endpoint.

    rewrite: asks for the rewrite of {report}.
    again: follows a rewrite that was refused for {reason}.
    judge: asks whether {rewrite} says what {report} says; yes or no comes first in the answer.
    """

    rewrite: str
    again: str
    judge: str

    def fingerprint(self) -> str:
        """Differs where a prompt differs."""
        texts = "\0".join((self.rewrite, self.again, self.judge))
        return hashlib.sha256(texts.encode()).hexdigest()


def load_prompts(rewrite: str = "", again: str = "", judge: str = "") -> Prompts:
    """Prompts from these files; the package's own for each that is "".

    Raises:
      UniXError: a file cannot be read, or lacks a field that its prompt needs.
    """
    given = {"rewrite": rewrite, "again": again, "judge": judge}
    return Prompts(**{name: _load(name, path) for name, path in given.items()})


def _load(name: str, path: str) -> str:
    if not path:
        file = resources.files("unix_jax.cleaning") / "prompts" / f"{name}.md"
        return file.read_text(encoding="utf-8").strip()
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UniXError(f"{path}: prompt cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UniXError(f"{path}: prompt: expected UTF-8") from None
    missing = _REQUIRED[name] - set(_FIELD.findall(text))
    if missing:
        fields = " and ".join(f"{{{field}}}" for field in sorted(missing))
        raise UniXError(f"{path}: the prompt {name}: expected the field {fields}, found none")
    return text


def filled(prompt: str, **fields: str) -> str:
    """The prompt with its fields filled in one pass: braces within a report mean nothing."""
    return _FIELD.sub(lambda match: fields.get(match[1], match[0]), prompt)
