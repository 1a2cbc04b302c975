"""Independent tasks side by side, on engines that are there already: loky's local processes, or a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from torch import nn

from adntn.errors import ConfigError, check_choice

__all__ = ["ENGINES", "check_engine", "count_workers", "pack", "run_tasks", "unpack"]

ENGINES = ("local", "ray")

# Of a local worker; unless the environment says otherwise it has its part of the CPUs.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

# Seconds after which a local worker without a task ends; until then the next call finds it started.
_IDLE = 300

_INSTALLED = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]

Task = TypeVar("Task")
Result = TypeVar("Result")


def check_engine(engine: str) -> None:
    """Raise unless the packages of an engine are installed.

    Raises:
        ConfigError: the engine is unknown, or a package is missing; the extra that has it is named.
    """
    if check_choice("engine", engine, ENGINES) == "ray":
        _ray()
        _needed("joblib", "ray")
    _needed("cloudpickle")
    _needed("loky")


def _needed(package: str, extra: str = "run") -> ModuleType:
    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigError(f"several workers need {error.name}: pip install 'adntn[{extra}]', or workers=1.") from None


def _ray() -> ModuleType:
    try:
        import_module("ray.util.joblib")
        return import_module("ray")
    except ImportError:
        raise ConfigError(
            "engine='ray' needs Ray: pip install 'adntn[ray]', or engine='local', which needs no cluster."
        ) from None


def count_workers(engine: str, workers: int | None, tasks: int, address: str | None = None) -> int:
    """Return how many workers there are: as asked for, or as there are CPUs, but none without a task."""
    if workers is None and tasks > 1:
        if engine == "ray" and (_ray().is_initialized() or address or "RAY_ADDRESS" in os.environ):
            with _cluster(None, address) as ray:
                workers = int(ray.cluster_resources().get("CPU", 1))
        else:
            workers = _needed("loky").cpu_count()
    return max(1, min(workers or 1, tasks))


def pack(model: nn.Module) -> bytes:
    """Return a model as bytes that another process can read; classes from files that it could not import go along.

    Raises:
        Exception: whatever stands in the way.
    """
    import cloudpickle

    homes = {cls.__module__ for module in model.modules() for cls in type(module).__mro__}
    foreign = [sys.modules[home] for home in sorted(homes) if home in sys.modules and _is_foreign(home)]
    for module in foreign:
        cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(model))
    finally:
        for module in foreign:
            cloudpickle.unregister_pickle_by_value(module)


def _is_foreign(name: str) -> bool:
    """Return whether another process, on another machine perhaps, may not have a module: it is no installed one."""
    if name == "__main__" or name.partition(".")[0] == "adntn":
        return False
    file = getattr(sys.modules[name], "__file__", None)
    return file is not None and not any(Path(file).is_relative_to(folder) for folder in _INSTALLED)


def unpack(content: bytes) -> nn.Module:
    """Return what :func:`pack` made bytes of; only for what came from this run's own process, never from a file."""
    import cloudpickle

    model: nn.Module = cloudpickle.loads(content)
    return model


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    workers: int,
    engine: str = "local",
    address: str | None = None,
) -> Generator[Result, None, None]:
    """Run a function on tasks, in this process or in several, and yield what it returns, in no order.

    A task is asked for when a worker is free for it, so that no more of them are in memory than are at work, and one to
    come. When this generator is closed, by an exception or a signal that the process would die of, so are the workers.

    Args:
        function: of a module that workers can import.
        tasks: what it is called with. With Ray as many at once as there are workers; the next come when all have ended.
        workers: how many; 1 means here, without any engine.
        engine: one of :data:`ENGINES`.
        address: of a Ray cluster; None means the variable ``RAY_ADDRESS``, or the cluster that this process is
            connected to already, or a new one on this machine.
    """
    if workers == 1:
        for task in tasks:
            yield function(task)
        return
    failed: list[Exception] = []
    feed = _guarded(tasks, failed)
    with _ended_by_signal():
        if engine == "ray":
            yield from _run_on_cluster(function, feed, workers, address)
        else:
            yield from _run_locally(_Watched(function, os.getpid()), feed, workers)
    if failed:
        raise failed[0]


def _guarded(tasks: Iterable[Task], failed: list[Exception]) -> Iterator[Task]:
    """Yield tasks until one cannot be made; what was made before is done first. Who interrupts does not wait for it."""
    try:
        yield from tasks
    except Exception as error:
        failed.append(error)


def _run_locally(
    function: Callable[[Task], Result], feed: Iterator[Task], workers: int
) -> Generator[Result, None, None]:
    loky = _needed("loky")
    threads = str(max(1, loky.cpu_count() // workers))
    environment = {name: os.environ.get(name, threads) for name in _THREADS}
    executor: Any = loky.get_reusable_executor(workers, timeout=_IDLE, env=environment)
    under_way: set[Future[Result]] = set()
    try:
        while True:
            for task in islice(feed, workers + 1 - len(under_way)):
                under_way.add(executor.submit(function, task))
            if not under_way:
                return
            ended, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for each in ended:
                yield each.result()
    except BaseException:
        executor.shutdown(kill_workers=True)
        raise


def _run_on_cluster(
    function: Callable[[Task], Result], feed: Iterator[Task], workers: int, address: str | None
) -> Generator[Result, None, None]:
    joblib = _needed("joblib", "ray")
    with _cluster(workers, address), warnings.catch_warnings():
        import_module("ray.util.joblib").register_ray()
        call = joblib.delayed(function)
        with joblib.Parallel(n_jobs=workers, backend="ray", batch_size=1) as parallel:
            # joblib gets results from Ray only when a whole list is there.
            while batch := [call(task) for task in islice(feed, workers)]:
                yield from parallel(batch)


@contextlib.contextmanager
def _cluster(workers: int | None, address: str | None) -> Iterator[ModuleType]:
    """Be connected to a Ray cluster; one that was started for this is ended with it."""
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, log_to_driver=False)
        else:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Leave by an exception on SIGTERM, so that workers are ended too, unless the program has a handler of its own."""
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not mine:
        yield
        return
    signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


class _Watched:
    """A function that, called in a local worker, sees to it that the worker does not outlive who called it."""

    def __init__(self, function: Callable[[Any], Any], caller: int) -> None:
        self.function, self.caller = function, caller

    def __call__(self, task: Any) -> Any:
        _watch(self.caller)
        return self.function(task)


_watched: set[int] = set()


def _watch(caller: int) -> None:
    if os.getppid() == caller and caller not in _watched:
        _watched.add(caller)
        threading.Thread(target=_die_with, args=(caller,), daemon=True).start()


def _die_with(caller: int) -> None:
    while os.getppid() == caller:
        time.sleep(0.5)
    os._exit(1)
