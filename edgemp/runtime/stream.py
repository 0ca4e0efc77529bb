"""Latest-wins streaming: a reader thread fills one slot, the caller's loop takes what is newest."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgemp.errors import ClosedError, InputError
from edgemp.runtime.result import Result

if TYPE_CHECKING:
    from edgemp.runtime.app import Runtime


@dataclass(frozen=True)
class StreamCounters:
    """Items that arrived, that were handed to `step`, and that were dropped before their turn.

    received = processed + dropped, plus one while an item waits.
    """

    received: int
    processed: int
    dropped: int


@dataclass(frozen=True)
class _Item:
    """`captured` has the capture times of signals taken over from items before `t`."""

    signals: dict[str, Any]
    t: float
    captured: dict[str, float]


class Stream:
    """Iterate over it for one `Result` per processed item.

    Items are (signals, t). At most one waits: a newer item replaces it (counted as dropped), but
    takes over signals that only the older one carried, with their capture time. Arrays must stay
    as they are until their item is processed or dropped: copy what a capture overwrites.

    A `source` is read by a thread of the stream's own; with `pace` it is read at the speed of its
    time stamps, as a camera would deliver. Without a source, call `push` from the capture's
    callback and `finish` at the end. An error in the source is raised in the loop; an error in a
    step leaves the loop and ends the stream.
    """

    def __init__(
        self,
        runtime: Runtime,
        source: Iterable[tuple[Mapping[str, Any], float]] | None = None,
        *,
        pace: bool = False,
    ) -> None:
        self._runtime = runtime
        self._slot: _Item | None = None
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
            InputError: if `signals` is not a mapping; its values are checked when its turn comes.
        """
        if not isinstance(signals, Mapping):
            raise InputError(
                f"a stream takes (mapping of signal names to values, t), got a "
                f"{type(signals).__name__} for the mapping"
            )
        with self._changed:
            if self._ended:
                raise ClosedError("this stream has ended")
            self._received += 1
            old = self._slot
            if old is None:
                self._slot = _Item(dict(signals), t, {})
            else:
                self._dropped += 1
                captured = {
                    name: old.captured.get(name, old.t)
                    for name in old.signals
                    if name not in signals
                }
                self._slot = _Item({**old.signals, **signals}, t, captured)
            # All, because a paced reader may be waiting too.
            self._changed.notify_all()

    def finish(self) -> None:
        """Say that nothing more will come; the loop ends after the item that waits."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """End the stream now, dropping what waits, and wait for the reader.

        It ends when its source yields the next item; after 5 s it is left to itself.
        """
        self._stop()
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join(timeout=5.0)

    def _stop(self) -> None:
        with self._changed:
            self._ended = True
            if self._slot is not None:
                self._slot = None
                self._dropped += 1
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Result]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._slot is not None or self._ended)
                item, self._slot = self._slot, None
                if item is None:
                    if self._error is not None:
                        raise self._error
                    return
                self._processed += 1
            try:
                result = self._runtime.step_merged(item.signals, item.t, item.captured)
            except BaseException:
                # Nobody may be left to close the stream, and its reader must not go on for ever.
                self._stop()
                raise
            del item  # or it would hold on to a frame while the caller is busy
            yield result

    def _read(self, source: Iterable[tuple[Mapping[str, Any], float]], pace: bool) -> None:
        started: tuple[float, float] | None = None
        try:
            for signals, t in source:
                if pace:
                    started = started or (time.monotonic(), t)
                    delay = started[0] + (t - started[1]) - time.monotonic()
                    delay = min(max(0.0, delay), threading.TIMEOUT_MAX)
                    with self._changed:
                        if self._changed.wait_for(lambda: self._ended, timeout=delay):
                            return
                try:
                    self.push(signals, t)
                except ClosedError:
                    return
        except BaseException as error:  # handed to the loop, which raises it
            with self._changed:
                self._error = error
        finally:
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
