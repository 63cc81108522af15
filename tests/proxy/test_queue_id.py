import itertools
import multiprocessing
import os
import re

from milterchain.proxy.queue_id import QueueIds


def test_ids_are_short_and_of_letters_and_digits() -> None:
    assert re.fullmatch(rb"[0-9B-DF-HJ-NP-TV-Z]{16}", QueueIds()())


def test_ids_sort_by_time() -> None:
    clock = itertools.count(1_600_000_000 * 10**9, 86_400 * 10**9)
    ids = QueueIds(clock.__next__, process=1)
    made = [ids() for _ in range(1000)]
    assert made == sorted(made)


def test_ids_never_repeat_when_the_clock_stands_still_or_goes_back() -> None:
    times = iter([5_000_000, 5_000_000, 1_000_000, 6_000_000])
    ids = QueueIds(lambda: next(times), process=1)
    made = [ids() for _ in range(4)]
    assert len(set(made)) == 4
    assert made == sorted(made)


def test_processes_differ_at_the_same_moment() -> None:
    largest = 2**22
    made = {QueueIds(lambda: 5_000_000, process=process)() for process in (1, 2, 31, largest - 1, largest)}
    assert len(made) == 5
    assert {len(each) for each in made} == {16}


def test_the_process_is_part_of_the_id() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        other = pool.apply(_suffix)
    assert other != _suffix()
    assert QueueIds()()[-5:] == QueueIds(process=os.getpid())()[-5:]


def _suffix() -> bytes:
    return QueueIds()()[-5:]
