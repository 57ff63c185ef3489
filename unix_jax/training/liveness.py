"""Processes that end together: one that dies ends the others, and each says which one it was.

Without this, the others wait in a collective operation. JAX's heartbeats end them as well, with a
stack trace of C++ in which the number of the process is hard to find; they remain as a second line
of defence, see `distributed.initialise`.

Every process writes a beat into the key-value store of JAX's coordination service, which process 0
holds. Process 0 compares the beats with those before, and writes who is missing. A lost connection
to the service means that process 0 itself has ended.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from unix_jax.errors import UniXError

# Seconds between beats; without a beat, after which a process counts as dead; and for which the
# processes may take to end by themselves after an error that all of them see.
PERIOD, SILENCE, GRACE = 2.0, 30.0, 10.0
_BEATS, _VERDICT = "unix_jax/beat/", "unix_jax/ended"


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends this process if another one dies inside; does nothing in a process that is alone.

    It ends with exit code 1 and without cleaning up, since it may be waiting for the dead one.
    """
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch(_client(), jax.process_index(), jax.process_count())
    watch.start()
    try:
        yield
    except BaseException as error:
        if _may_be_anothers(error):
            # It ends the process if another one has died.
            time.sleep(SILENCE + 2 * PERIOD)
        watch.stop("ended with an error, which its own output shows")
        raise
    watch.stop("")


def _client() -> Any:
    # JAX has no public name for it; Orbax uses this one, too.
    from jax._src import distributed

    return distributed.global_state.client


def _may_be_anothers(error: BaseException) -> bool:
    """Whether an error may come from a collective operation that lost a process."""
    if isinstance(error, UniXError):
        return False
    text = str(error)
    known = ("Gloo", "NCCL", "UNAVAILABLE", "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL")
    return isinstance(error, (jax.errors.JaxRuntimeError, ValueError, RuntimeError)) and any(
        word in text for word in known
    )


class _Watch:
    """Sends the beats of one process, and ends it when another one has died."""

    def __init__(self, client: Any, index: int, count: int) -> None:
        self._client, self._index, self._count = client, index, count
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="unix-liveness", daemon=True)
        self._beat = 0
        # Of each other process: the last beat, and when it was first seen.
        now = time.monotonic()
        self._seen: dict[int, tuple[int, float]] = {i: (0, now) for i in range(count) if i != index}
        self._hosts: dict[int, str] = {}
        self._failed: dict[int, float] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self, reason: str) -> None:
        """Ends the watch; with a reason, the other processes end as well if they wait."""
        self._stopped.set()
        self._thread.join(3 * PERIOD)
        # The service may be gone.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._send(ended=True, reason=reason)
            if self._index == 0 and reason:
                self._end_others(reason)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._send()
                verdict = self._judge() if self._index == 0 else self._wait_for_verdict()
            except jax.errors.JaxRuntimeError:
                verdict = (
                    "process 0, which coordinates the others, has ended or cannot be reached; its "
                    "own output may say why"
                )
            if verdict and not self._stopped.is_set():
                self._end(verdict)
            if self._index == 0:
                self._stopped.wait(PERIOD)

    def _send(self, ended: bool = False, reason: str = "") -> None:
        self._beat += 1
        beat = [self._beat, socket.gethostname(), ended, reason]
        self._client.key_value_set(f"{_BEATS}{self._index}", json.dumps(beat), allow_overwrite=True)

    def _wait_for_verdict(self) -> str | None:
        try:
            found = self._client.blocking_key_value_get(_VERDICT, int(PERIOD * 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise
        return str(found)

    def _judge(self) -> str | None:
        """Who is missing, by process 0; the others are told."""
        now = time.monotonic()
        for key, text in self._client.key_value_dir_get(_BEATS):
            index = int(key.rpartition("/")[2])
            beat, host, ended, reason = json.loads(text)
            self._hosts[index] = host
            if index == self._index:
                continue
            if ended and not reason:
                self._seen.pop(index, None)
            elif index in self._seen and beat != self._seen[index][0]:
                self._seen[index] = beat, now
            if reason and now - self._failed.setdefault(index, now) >= GRACE:
                return self._publish(f"{self._name(index)} {reason}")
        for index, (_, since) in self._seen.items():
            if index not in self._failed and now - since > SILENCE:
                return self._publish(
                    f"{self._name(index)} has not answered for {SILENCE:.0f} s: it was killed, or "
                    "its machine cannot be reached"
                )
        return None

    def _end_others(self, reason: str) -> None:
        """By process 0 after its own error: others that see it too end by themselves."""
        until = time.monotonic() + GRACE
        while time.monotonic() < until:
            beats = self._client.key_value_dir_get(_BEATS)
            if sum(json.loads(text)[2] for _, text in beats) == self._count:
                return
            time.sleep(0.2)
        self._publish(f"{self._name(0)} {reason}")

    def _publish(self, verdict: str) -> str:
        self._client.key_value_set(_VERDICT, verdict, allow_overwrite=True)
        # While process 0 is there, the others can read it.
        time.sleep(2 * PERIOD)
        return verdict

    def _name(self, index: int) -> str:
        host = self._hosts.get(index, "which never answered" if index else socket.gethostname())
        return f"process {index} of {self._count} ({host})"

    def _end(self, verdict: str) -> None:
        sys.stdout.flush()
        print(
            f"error: distributed: {verdict}. This process ends too; to resume, run the same "
            "command again in all processes",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
