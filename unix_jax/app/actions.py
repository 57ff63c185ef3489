"""What the page's requests have in common: their stop, their errors, the visitor's session.

An action of a button is a generator that yields the page's next state, whose last value is a
message. Errors become messages too: an input error with its own text, and any other error as a
reference to the server's log.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from unix_jax.app.choices import Limits
from unix_jax.app.figures import GeneratedImage, complaint, said, session_figures
from unix_jax.app.reports import WrittenReport
from unix_jax.errors import UniXError
from unix_jax.inference.programs import ProgramBudget

NO_IMAGE = "The image appears here."
FAILED = "An error occurred on the server; see its log."

Session = tuple[GeneratedImage | WrittenReport, ...]
State = tuple[Any, ...]


@dataclasses.dataclass
class Stop:
    """State of a tab's request: whether it is running, and whether its visitor asked to stop it.

    It is checked between two steps. Gradio's own mechanism, which closes a generator from outside,
    loses requests that the visitor sends in the meantime.
    """

    asked: bool = False
    pending: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requests:
    """Shared by all visitors; the state of a visitor is passed in and returned.

    `unchanged` is Gradio's value for "do not change". `programs` bounds the compiled programs.
    `empty` is the text of a session without images and reports.
    """

    limits: Limits
    unchanged: Any
    programs: ProgramBudget
    empty: str

    def begin(self, stop: Stop) -> str:
        """Called before a request joins the queue: clears an earlier stop."""
        stop.asked, stop.pending = False, True
        return said("Waiting for the model …")

    def end(self, stop: Stop) -> Any:
        """Asks the tab's request, running or waiting, to end; its own message comes last."""
        stop.asked = stop.pending
        return self.unchanged if stop.pending else said("Nothing is running.")

    def clear(self) -> State:
        """Clears the session's images: (images, their figures, message)."""
        return (), session_figures([], self.empty), said("Cleared.")

    def kept(
        self, session: Session, added: Sequence[GeneratedImage | WrittenReport | None]
    ) -> tuple[Any, Any]:
        """The session's items and their figures, once the last added one is finished."""
        if added[-1] is None:
            return self.unchanged, self.unchanged
        kept = (*session, *(finished for finished in added if finished is not None))
        kept = kept[-self.limits.session_images :]
        return kept, session_figures(list(kept), self.empty)

    def until(self, stop: Stop, steps: Iterator[State]) -> Iterator[State]:
        """The steps until the visitor stops them."""
        stop.pending = True
        try:
            for state in steps:
                if stop.asked:
                    yield (*[self.unchanged] * (len(state) - 1), said("Stopped."))
                    return
                yield state
        finally:
            stop.asked = stop.pending = False


def told(steps: Iterator[State], blank: State) -> Iterator[State]:
    """The steps; an error ends them with `blank` and a message."""
    try:
        yield from steps
    except UniXError as error:
        yield (*blank, complaint(str(error)))
    except Exception:
        logging.getLogger(__name__).exception("a request failed")
        yield (*blank, complaint(FAILED))
