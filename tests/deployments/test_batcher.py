from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from deployments.batcher import Batcher
from orchestrator.errors import MemberFailedError, OverloadedError


def rows(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


class Worker:
    """Doubles its input; waits for `gate` when closed; fails on negative numbers."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.batches.append(len(batch))
        await self.gate.wait()
        if (batch < 0).any():
            raise ValueError("negative")
        return batch * 2


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_an_idle_worker_takes_one_item_at_once() -> None:
    async def test() -> None:
        worker = Worker()
        batcher = Batcher(worker, max_rows=8, max_queued=100)
        np.testing.assert_array_equal(await batcher.submit(rows(1, 2)), rows(2, 4))
        np.testing.assert_array_equal(await batcher.submit(rows(3)), rows(6))
        assert worker.batches == [2, 1]
        assert batcher.busy_s == 0

    run(test())


def test_free_workers_share_what_waits() -> None:
    async def test() -> None:
        worker = Worker()
        worker.gate.clear()
        batcher = Batcher(worker, max_rows=8, max_queued=100, at_once=3)
        answers = [asyncio.create_task(batcher.submit(rows(number))) for number in range(6)]
        await settle()
        assert worker.batches == [2, 2, 2]
        answers += [asyncio.create_task(batcher.submit(rows(number))) for number in range(4)]
        await settle()
        assert worker.batches == [2, 2, 2]
        worker.gate.set()
        await asyncio.gather(*answers)
        assert sum(worker.batches) == 10
        assert batcher.busy_s == 0
        await batcher.close()

    run(test())


def test_closed_while_calls_run_and_rows_wait_all_are_cancelled() -> None:
    async def test() -> None:
        worker = Worker()
        worker.gate.clear()
        batcher = Batcher(worker, max_rows=1, max_queued=100, at_once=2)
        answers = [asyncio.create_task(batcher.submit(rows(number))) for number in range(5)]
        await settle()
        assert worker.batches == [1, 1]
        await batcher.close()
        assert {type(one) for one in await asyncio.gather(*answers, return_exceptions=True)} == {
            asyncio.CancelledError
        }
        at_once = asyncio.create_task(batcher.submit(rows(1)))
        await asyncio.sleep(0)  # its worker has not begun
        await batcher.close()
        await asyncio.wait([at_once], timeout=1)
        assert at_once.cancelled()

    run(test())


def test_it_collects_while_the_worker_is_busy_and_does_not_fragment() -> None:
    async def test() -> None:
        worker = Worker()
        worker.gate.clear()
        batcher = Batcher(worker, max_rows=4, max_queued=100)
        first = asyncio.create_task(batcher.submit(rows(0)))
        await settle()
        rest = [asyncio.create_task(batcher.submit(rows(value))) for value in range(1, 11)]
        await asyncio.sleep(0.05)  # a timed batcher would have frozen small batches by now
        assert batcher.busy_s > 0.04
        worker.gate.set()
        answers = await asyncio.gather(first, *rest)
        assert [float(answer[0, 0]) for answer in answers] == [2.0 * value for value in range(11)]
        assert worker.batches == [1, 4, 4, 2]

    run(test())


def test_items_are_never_cut_and_large_ones_run_alone() -> None:
    async def test() -> None:
        worker = Worker()
        batcher = Batcher(worker, max_rows=4, max_queued=100)
        sizes = [3, 2, 9, 1, 1]
        answers = await asyncio.gather(*(batcher.submit(np.ones((size, 2), np.float32)) for size in sizes))
        assert [len(answer) for answer in answers] == sizes
        assert worker.batches == [3, 2, 9, 2]

    run(test())


def test_one_failing_item_fails_alone() -> None:
    async def test() -> None:
        worker = Worker()
        batcher = Batcher(worker, max_rows=8, max_queued=100)
        answers = await asyncio.gather(
            *(batcher.submit(rows(value)) for value in (1, -1, 2)), return_exceptions=True
        )
        assert isinstance(answers[1], MemberFailedError)
        assert "ValueError: negative" in str(answers[1])
        np.testing.assert_array_equal(np.concatenate([answers[0], answers[2]]), rows(2, 4))
        np.testing.assert_array_equal(await batcher.submit(rows(5)), rows(10))

    run(test())


def test_cancelled_items_are_dropped_before_their_batch() -> None:
    async def test() -> None:
        worker = Worker()
        worker.gate.clear()
        batcher = Batcher(worker, max_rows=8, max_queued=100)
        tasks = [asyncio.create_task(batcher.submit(rows(0)))]
        await settle()
        tasks += [asyncio.create_task(batcher.submit(rows(value))) for value in (1, 2, 3)]
        await settle()
        tasks[2].cancel()
        tasks[0].cancel()  # its batch runs already: the others must not notice
        await settle()
        worker.gate.set()
        answers = await asyncio.gather(tasks[1], tasks[3])
        assert [float(answer[0, 0]) for answer in answers] == [2, 6]
        assert worker.batches == [1, 2]

    run(test())


def test_a_full_queue_refuses_and_recovers() -> None:
    async def test() -> None:
        worker = Worker()
        worker.gate.clear()
        batcher = Batcher(worker, max_rows=2, max_queued=3)
        tasks = [asyncio.create_task(batcher.submit(rows(0)))]
        await settle()
        tasks += [
            asyncio.create_task(batcher.submit(rows(1, 2))),
            asyncio.create_task(batcher.submit(rows(3))),
        ]
        await settle()
        with pytest.raises(OverloadedError, match="waiting: 3"):
            await batcher.submit(rows(4))
        worker.gate.set()
        await asyncio.gather(*tasks)
        np.testing.assert_array_equal(await batcher.submit(rows(4)), rows(8))

    run(test())


def test_an_item_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    async def test() -> None:
        batcher = Batcher(Worker(), max_rows=2, max_queued=3)
        assert len(await batcher.submit(np.ones((10, 1), np.float32))) == 10

    run(test())


def test_a_wrong_number_of_outputs_is_a_failure() -> None:
    async def test() -> None:
        async def short(batch: np.ndarray) -> np.ndarray:
            return batch[1:]

        batcher = Batcher(short, max_rows=8, max_queued=100)
        answers = await asyncio.gather(*(batcher.submit(rows(1)) for _ in range(2)), return_exceptions=True)
        assert all(isinstance(answer, MemberFailedError) for answer in answers)

    run(test())


def test_close_cancels_whoever_waits() -> None:
    async def test() -> None:
        worker = Worker()
        worker.gate.clear()
        batcher = Batcher(worker, max_rows=1, max_queued=100)
        tasks = [asyncio.create_task(batcher.submit(rows(value))) for value in (1, 2)]
        await settle()
        await batcher.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)

    run(test())


def test_who_would_wait_in_vain_is_refused_at_once_and_told_when_to_come_back() -> None:
    async def test() -> None:
        worker = Worker()

        async def slow(batch: np.ndarray) -> np.ndarray:
            await asyncio.sleep(0.02 * len(batch))
            return await worker(batch)

        batcher = Batcher(slow, max_rows=2, max_queued=100)
        await batcher.submit(rows(0))  # now it knows what a row takes
        waiting = [asyncio.create_task(batcher.submit(rows(i), timeout_s=10)) for i in range(12)]
        await settle()
        assert batcher.queued == 10
        with pytest.raises(OverloadedError, match="no answer is possible in time") as caught:
            await batcher.submit(rows(99), timeout_s=0.1)
        assert caught.value.retry_after_s is not None
        assert 0.05 < caught.value.retry_after_s < 5
        await batcher.submit(rows(99), timeout_s=10)
        await asyncio.gather(*waiting)
        assert sum(worker.batches) == 14

    run(test())


def test_one_slow_call_does_not_close_an_empty_queue() -> None:
    async def test() -> None:
        worker = Worker()
        batcher = Batcher(worker, max_rows=2, max_queued=100)
        batcher._pace(1000.0)
        np.testing.assert_array_equal(await batcher.submit(rows(1), timeout_s=0.5), rows(2))

    run(test())
