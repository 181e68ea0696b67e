"""Signals that ask a run to stop are remembered between two steps, and break off only what may be broken off."""

from __future__ import annotations

import signal
import threading

import pytest

from tenfold.engine.signals import STOPPING, StopRequested, Watch


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_a_signal_is_remembered_by_its_name_and_ends_nothing(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in STOPPING]
    with Watch() as watch:
        assert watch.requested is None
        signal.raise_signal(number)
        assert watch.requested == number.name
    assert [signal.getsignal(n) for n in STOPPING] == before


def test_the_first_signal_is_the_reason_and_the_third_interrupt_is_meant() -> None:
    with Watch() as watch:
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert watch.requested == "SIGUSR2"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_work_that_changes_no_state_is_broken_off_once_and_not_begun_afterwards() -> None:
    with Watch() as watch:
        with watch.interruptible():
            done = True
        assert done
        with pytest.raises(StopRequested, match="SIGTERM"), watch.interruptible():
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("went on after the signal")
        signal.raise_signal(signal.SIGTERM)  # while the state is being written nothing is broken off
        with pytest.raises(StopRequested, match="SIGTERM"), watch.interruptible():
            pytest.fail("began after the signal")


def test_outside_the_main_thread_the_handlers_are_left_alone() -> None:
    before, seen = [signal.getsignal(n) for n in STOPPING], []

    def watch() -> None:
        with Watch() as watched:
            seen.append(watched.requested)
            seen.append([signal.getsignal(n) for n in STOPPING])

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert seen == [None, before]
