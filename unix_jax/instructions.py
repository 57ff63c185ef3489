"""Instructions for reports: the project's sentences, or a checkpoint's own.

Every instruction of the original names in capitals the sections of the answer, FINDINGS and
IMPRESSION, or FINDINGS alone. The sentences here have that form in the project's own wording.
Training selects one of the matching list at random for each sample and epoch; everything else
(reports, evaluation, previews, the page) uses the first one.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from unix_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Instructions:
    """Instructions by the sections of the report; each list has at least one sentence.

    findings_and_impression: for reports with both sections. Its first sentence is the default for
      reports. The list is also used for references without headings, whose sections are unknown.
    findings: for reports with FINDINGS alone.
    impression: for reports with IMPRESSION alone. The original's evaluation has no such item; an
      instruction that asks for both sections would teach a model to omit one of them.
    """

    findings_and_impression: tuple[str, ...] = (
        "Describe this chest X-ray in a report with the sections FINDINGS and IMPRESSION.",
        "Read the chest radiograph and write the FINDINGS and IMPRESSION of its report.",
        "What does this chest X-ray show? Answer with FINDINGS and IMPRESSION.",
        "Write the FINDINGS and IMPRESSION for this chest radiograph.",
        "As a radiologist, report the FINDINGS and IMPRESSION of this chest X-ray.",
    )
    findings: tuple[str, ...] = (
        "Describe this chest X-ray in a report with the section FINDINGS.",
        "Read the chest radiograph and write the FINDINGS of its report.",
        "What does this chest X-ray show? Answer with FINDINGS.",
        "Write the FINDINGS for this chest radiograph.",
        "As a radiologist, report the FINDINGS of this chest X-ray.",
    )
    impression: tuple[str, ...] = (
        "Describe this chest X-ray in a report with the section IMPRESSION.",
        "Read the chest radiograph and write the IMPRESSION of its report.",
        "What does this chest X-ray show? Answer with IMPRESSION.",
        "Write the IMPRESSION for this chest radiograph.",
        "As a radiologist, report the IMPRESSION of this chest X-ray.",
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            sentences = getattr(self, field.name)
            if not sentences or not all(isinstance(s, str) and s.strip() for s in sentences):
                raise ConfigError(
                    f"instructions.{field.name}: expected a list of texts, at least one and none "
                    f"of them empty, found {list(sentences)!r:.80}"
                )

    @property
    def default(self) -> str:
        """The instruction to use if nothing is known about the report."""
        return self.findings_and_impression[0]

    def fitting(self, findings: str, impression: str) -> tuple[str, ...]:
        """The list for a reference with these sections, "" for an absent one."""
        match bool(findings.strip()), bool(impression.strip()):
            case True, False:
                return self.findings
            case False, True:
                return self.impression
        return self.findings_and_impression

    @classmethod
    def same(cls, sentences: tuple[str, ...]) -> "Instructions":
        """Uses these sentences for reports with any sections."""
        return cls(sentences, sentences, sentences)

    @classmethod
    def from_dict(cls, values: Any, where: str) -> "Instructions":
        """Reads a JSON object of lists; the project's lists replace missing ones.

        Raises:
          ConfigError: an unknown list, or one that is not made of texts.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: expected a JSON object, found {values!r:.80}")
        for name, sentences in values.items():
            if name not in names:
                raise ConfigError(f"{where}: expected lists named {names}, found {name!r:.80}")
            if not isinstance(sentences, list | tuple):
                raise ConfigError(
                    f"{where}.{name}: expected a list of texts, found {sentences!r:.80}"
                )
        try:
            return cls(**{name: tuple(sentences) for name, sentences in values.items()})
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None


DEFAULT = Instructions()
