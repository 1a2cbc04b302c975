from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import loky
import loky.process_executor
import pytest

import adntn
from adntn.errors import ConfigError
from adntn.training.parallel import check_engine, count_workers, run_tasks

# What a worker is to do must be importable there; the library's own is.
from adntn.training.seeds import derive_seed


def test_one_worker_is_this_process_and_takes_tasks_one_by_one() -> None:
    events: list[str] = []

    def tasks() -> Iterator[int]:
        for number in range(3):
            events.append(f"task {number}")
            yield number

    for result in run_tasks(lambda number: (number, os.getpid()), tasks(), workers=1):
        events.append(f"result {result[0]}")
        assert result[1] == os.getpid()
    assert events == ["task 0", "result 0", "task 1", "result 1", "task 2", "result 2"]


@pytest.mark.slow
def test_workers_do_all_tasks_and_few_are_made_before_they_are_needed() -> None:
    made = 0

    def tasks() -> Iterator[int]:
        nonlocal made
        for number in range(40):
            made += 1
            yield number

    results = run_tasks(derive_seed, tasks(), workers=2)
    found = {next(results)}
    assert made < 40
    found |= set(results)
    assert found == {derive_seed(number) for number in range(40)}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_that_cannot_be_made_is_not_lost(workers: int) -> None:
    def tasks() -> Iterator[int]:
        yield from range(4)
        raise ConfigError("no fifth")

    results = run_tasks(derive_seed, tasks(), workers=workers)
    assert len([next(results) for _ in range(4)]) == 4
    with pytest.raises(ConfigError, match="no fifth"):
        next(results)


def test_an_interruption_while_a_task_is_made_does_not_wait_for_the_others() -> None:
    def tasks() -> Iterator[float]:
        yield from (0.0, 60.0, 60.0)
        raise KeyboardInterrupt

    results = run_tasks(time.sleep, tasks(), workers=2)
    next(results)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert time.monotonic() - began < 30


def test_leaving_early_ends_the_workers_and_says_nothing() -> None:
    results = run_tasks(time.sleep, [0.0, 60.0, 60.0], workers=2)
    next(results)
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 30


def test_leaving_while_a_task_is_not_handed_on_says_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = loky.process_executor._ExecutorManagerThread
    take, taken = manager.process_result_item, []
    second_is_there, go_on = threading.Event(), threading.Event()

    def take_two(self: threading.Thread, result: object) -> None:
        take(self, result)
        taken.append(result)
        if len(taken) == 2:
            second_is_there.set()
            go_on.wait(30)

    monkeypatch.setattr(manager, "process_result_item", take_two)
    results = run_tasks(time.sleep, [0.0, 0.0, 60.0, 60.0], workers=2)
    next(results)
    assert second_is_there.wait(60)
    threading.Timer(0.3, go_on.set).start()
    next(results)  # the fourth is given to loky, whose thread does not look
    results.close()  # an exception there would be a warning, which is an error here


def test_workers_are_none_without_a_task() -> None:
    assert count_workers("local", 8, 3) == 3
    assert count_workers("local", None, 1) == 1
    assert count_workers("local", None, 10**6) == loky.cpu_count()
    assert count_workers("local", 4, 0) == 1


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_engine("local")
    monkeypatch.setitem(sys.modules, "loky", None)
    with pytest.raises(ConfigError, match=r"several workers need loky: pip install 'adntn\[run\]', or workers=1"):
        check_engine("local")


PROGRAM = """
import os, signal, sys, time
from adntn.training.parallel import run_tasks
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background deaf to it
    folder = sys.argv[1]
    command = [f"import os, time; open(f'{folder}/{{os.getpid()}}', 'w').close(); time.sleep(300)"] * 2
    for _ in run_tasks(exec, command, workers=2):
        pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_workers_do_not_outlive_the_program(number: signal.Signals, tmp_path: Path) -> None:
    program, folder = tmp_path / "program.py", tmp_path / "workers"
    program.write_text(PROGRAM)
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(adntn.__file__).parents[1])}
    running = subprocess.Popen([sys.executable, program, folder], env=environment, stderr=subprocess.DEVNULL)
    try:
        while len(list(folder.iterdir())) < 2:
            assert running.poll() is None
            time.sleep(0.1)
        running.send_signal(number)
        assert running.wait(60) != 0
    finally:
        running.kill()
    workers = [int(each.name) for each in folder.iterdir()]
    until = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until, "workers go on"
        time.sleep(0.1)
