"""What HTTP and gRPC share: the models by name, admission, and what is counted."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from deployments.drive import everyone
from deployments.exchange import Answer, Served
from deployments.protocol.errors import ProtocolError, UnknownModelError
from deployments.protocol.images import takes_images
from deployments.protocol.model import Model
from deployments.protocol.rest import Codec, codec_of
from orchestrator.config.serving import ServingSettings
from orchestrator.errors import OrchestratorError, OverloadedError

P = ParamSpec("P")
T = TypeVar("T")

SERVER_NAME = "orchestrator"
LARGE_BYTES = 256 * 1024
"""Bodies above this are decoded in a thread, so that the event loop goes on."""

MOST_THREADS = min(4, os.cpu_count() or 1)
"""That read and write bodies."""
_SLOTS = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]()
"""Free ones of them."""


class Gate:
    """Lets in so many requests at once; a context manager for each.

    Raises:
        OverloadedError: on entry, when it is full.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside = 0

    def __enter__(self) -> None:
        if self._inside >= self._most:
            raise OverloadedError("too many requests are in work", self._inside, "try again later")
        self._inside += 1

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._inside -= 1


class Bodies:
    """Counts the bytes of all bodies in work."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0

    def room(self) -> Room:
        """For one request."""
        return Room(self)

    def change(self, size: int) -> None:
        """Hold more or fewer bytes.

        Raises:
            OverloadedError: there are too many.
        """
        if size > 0 and self._held + size > self._most:
            raise OverloadedError("too many bytes of bodies are in work", self._held, "try again later")
        self._held += size


class Room:
    """What one request's body takes of all `Bodies`; a context manager, whose end gives it back."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self._mine = bodies, 0

    def __enter__(self) -> Callable[[int], None]:
        """To be called with the bytes of each part; raises `OverloadedError` when there are too many."""
        return self._take

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._bodies.change(-self._mine)

    def _take(self, size: int) -> None:
        self._bodies.change(size)
        self._mine += size


@dataclass
class Statistics:
    """Counts and nanoseconds of one model's requests, in Triton's terms."""

    last_ms: int = 0
    """When the last one was answered, in milliseconds since 1970."""
    rows: int = 0
    succeeded: int = 0
    failed: int = 0
    total_ns: int = 0
    failed_ns: int = 0
    input_ns: int = 0
    """Spent on reading and decoding bodies."""
    infer_ns: int = 0
    """Spent on waiting for the ensemble."""
    output_ns: int = 0

    def succeed(self, rows: int, times_ns: tuple[int, int, int, int]) -> None:
        """Count an answer, by when it was started, decoded, known and encoded."""
        start, decoded, known, encoded = times_ns
        self.last_ms = time.time_ns() // 1_000_000
        self.rows += rows
        self.succeeded += 1
        self.total_ns += encoded - start
        self.input_ns += decoded - start
        self.infer_ns += known - decoded
        self.output_ns += encoded - known

    def fail(self, start_ns: int) -> None:
        """Count a refusal or failure."""
        self.failed += 1
        self.failed_ns += time.perf_counter_ns() - start_ns

    def plain(self, model: Model) -> dict[str, Any]:
        """As the protocol's statistics extension has it."""

        def phase(count: int, ns: int) -> dict[str, int]:
            return {"count": count, "ns": ns}

        return {
            "name": model.name,
            "version": model.version,
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": self.succeeded,
            "inference_stats": {
                "success": phase(self.succeeded, self.total_ns),
                "fail": phase(self.failed, self.failed_ns),
                "queue": phase(self.succeeded, 0),
                "compute_input": phase(self.succeeded, self.input_ns),
                "compute_infer": phase(self.succeeded, self.infer_ns),
                "compute_output": phase(self.succeeded, self.output_ns),
            },
            "batch_stats": [],
        }


@dataclass(frozen=True)
class Entry:
    """A served model with what belongs to it."""

    served: Served
    codec: Codec
    statistics: Statistics

    @property
    def model(self) -> Model:
        return self.served.model

    @property
    def large_bytes(self) -> int:
        """Bodies of that size are decoded in a thread."""
        encoder = self.codec.encoder
        return LARGE_BYTES if encoder is None else encoder.large_bytes

    @property
    def takes_files(self) -> bool:
        """A row may be an image file, and a small one may hold a large image."""
        return takes_images(self.model.input)

    def model_of(self, answer: Answer) -> Model:
        """The model, in the version that made an answer."""
        version = answer.version or self.model.version
        return self.model if version == self.model.version else replace(self.model, version=version)


class Front:
    """The models behind one address.

    Args:
        served: the models.
        serving: limits.
    """

    def __init__(self, served: Sequence[Served], serving: ServingSettings) -> None:
        self.serving = serving
        self.gate = Gate(serving.max_requests)
        self.bodies = Bodies(serving.max_bodies_bytes)
        self._entries = {
            one.model.name: Entry(one, codec_of(one.model, serving), Statistics()) for one in served
        }
        self._checks: dict[tuple[str, ...], asyncio.Task[None]] = {}

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The models by name, as they are now."""
        return self._entries

    def renew(self, model: Model) -> None:
        """A model of the same name, inputs and outputs takes over; statistics go on."""
        entry = self._entries[model.name]
        if model != entry.model:
            served = replace(entry.served, model=model)
            self._entries[model.name] = replace(entry, served=served, codec=codec_of(model, self.serving))

    def find(self, name: str, version: str | None = None) -> Entry:
        """The model of that name, and of that version if one is given.

        Raises:
            UnknownModelError: there is none.
        """
        found = self.entries.get(name)
        if found is None:
            raise UnknownModelError("no such model", name[:80], f"served here: {', '.join(self.entries)}")
        if version not in (None, "", found.model.version):
            raise UnknownModelError(
                f"{name} has no such version", str(version)[:80], f"served here: {found.model.version}"
            )
        return found

    async def ready(self, entries: Sequence[Entry] | None = None) -> None:
        """Returns when these models, or all, can answer.

        Who asks while a check is under way waits for that one: the route is open to everybody, and each check
        calls every member.

        Raises:
            OrchestratorError: one cannot.
        """
        asked = list(self.entries.values()) if entries is None else entries
        names = tuple(one.model.name for one in asked)
        check = self._checks.get(names)
        if check is None:
            check = asyncio.create_task(everyone([one.served.ready() for one in asked]))
            self._checks[names] = check
            check.add_done_callback(lambda _: self._checks.pop(names))
        await asyncio.shield(check)

    async def index(self) -> list[dict[str, str]]:
        """Name, version and state of every model."""
        entries = list(self.entries.values())
        states = await asyncio.gather(*(self.ready([one]) for one in entries), return_exceptions=True)
        for state in states:
            if state is not None and not isinstance(state, OrchestratorError):
                raise state
        return [
            {
                "name": one.model.name,
                "version": one.model.version,
                "state": "READY" if state is None else "UNAVAILABLE",
                "reason": "" if state is None else str(state),
            }
            for one, state in zip(entries, states, strict=True)
        ]


def check_given(answer: Answer, wanted: frozenset[str]) -> None:
    """The ensemble gave all outputs that were wanted.

    Raises:
        ProtocolError: one is missing, since not every placement has it.
    """
    if missing := wanted - answer.outputs.keys():
        raise ProtocolError("the ensemble as it is placed here does not give the output", min(missing))


async def maybe_threaded(threaded: bool, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function, in one of a few threads if it may take long."""
    return await in_thread(function, *args, **kwargs) if threaded else function(*args, **kwargs)


async def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that takes long in one of a few threads.

    Who gives up while all of them are busy leaves nothing behind that would wait for one.
    """
    loop = asyncio.get_running_loop()
    slots = _SLOTS.setdefault(loop, asyncio.Semaphore(MOST_THREADS))
    await slots.acquire()

    def ended(work: asyncio.Future[T]) -> None:
        slots.release()
        if not work.cancelled():
            work.exception()  # looked at: whoever asked may be gone

    work = loop.run_in_executor(_threads(), partial(function, *args, **kwargs))
    work.add_done_callback(ended)
    return await asyncio.shield(work)


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="bodies")
