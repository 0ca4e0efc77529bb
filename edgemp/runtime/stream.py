"""Latest-wins streaming: a reader thread fills one slot, the caller's loop takes what is newest."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgemp.errors import ClosedError
from edgemp.runtime.result import Result

if TYPE_CHECKING:
    from edgemp.runtime.app import Runtime


@dataclass(frozen=True)
class StreamCounters:
    """Items that arrived, that were stepped on, and that newer ones replaced before their turn."""

    received: int
    processed: int
    dropped: int


class Stream:
    """Iterate over it for one `Result` per processed item.

    Items are (signals, t). At most one waits: a newer item replaces it (counted as dropped), but takes
    over signals that only the older one carried. A `source` is read by a thread of the stream's own; with
    `pace` it is read at the speed of its time stamps, as a camera would deliver. Without a source, call
    `push` from the capture's callback and `finish` at the end. An error in the source is raised in
    the loop.
    """

    def __init__(
        self,
        runtime: Runtime,
        source: Iterable[tuple[Mapping[str, Any], float]] | None = None,
        *,
        pace: bool = False,
    ) -> None:
        self._runtime = runtime
        self._slot: tuple[dict[str, Any], float] | None = None
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None
        self._received = self._processed = self._dropped = 0
        self._reader: threading.Thread | None = None
        if source is not None:
            self._reader = threading.Thread(
                target=self._read, args=(source, pace), name="edgemp-stream", daemon=True
            )
            self._reader.start()

    @property
    def counters(self) -> StreamCounters:
        with self._changed:
            return StreamCounters(self._received, self._processed, self._dropped)

    def push(self, signals: Mapping[str, Any], t: float) -> None:
        """Offer one item; never blocks on the pipeline.

        Raises:
            ClosedError: after `finish` or `close`.
        """
        with self._changed:
            if self._ended:
                raise ClosedError("this stream has ended")
            self._received += 1
            held: dict[str, Any] = {}
            if self._slot is not None:
                self._dropped += 1
                held = self._slot[0]
            self._slot = ({**held, **signals}, t)
            self._changed.notify()

    def finish(self) -> None:
        """Say that nothing more will come; the loop ends after the item that waits."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """End the stream now and wait for the reader (at most as long as its source's next item takes)."""
        with self._changed:
            self._ended = True
            self._slot = None
            self._changed.notify_all()
        if self._reader is not None:
            self._reader.join(timeout=5.0)

    def __iter__(self) -> Iterator[Result]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._slot is not None or self._ended)
                item, self._slot = self._slot, None
                if item is None:
                    if self._error is not None:
                        raise self._error
                    return
            signals, t = item
            result = self._runtime.step(signals, t=t)
            with self._changed:
                self._processed += 1
            yield result

    def _read(self, source: Iterable[tuple[Mapping[str, Any], float]], pace: bool) -> None:
        started: tuple[float, float] | None = None
        try:
            for signals, t in source:
                if pace:
                    started = started or (time.monotonic(), t)
                    delay = started[0] + (t - started[1]) - time.monotonic()
                    with self._changed:
                        if self._changed.wait_for(lambda: self._ended, timeout=max(0.0, delay)):
                            return
                try:
                    self.push(signals, t)
                except ClosedError:
                    return
        except Exception as error:  # handed to the loop, which raises it
            with self._changed:
                self._error = error
        self.finish()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
