"""A pool of Ray actors of any class, which are started, called, and replaced when they die or hang."""

from __future__ import annotations

import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch

from addiffusion_env.backbones.identity import difference_words
from addiffusion_env.config import removed_in
from addiffusion_env.errors import ConfigError, MissingPackageError, WorkerError
from addiffusion_env.plugins import load_plugins, loaded_plugins
from addiffusion_env.settings import Gt, Settings

PATIENT = 30.0
"""Seconds after which a worker that has not started is reported, with what it may be waiting for."""

POLL = 0.01
"""Minimum time-out in seconds, so that an answer that is ready is received even after its deadline."""

OBJECT_STORE = 200 * 2**20
"""Object store memory of a local Ray, in bytes."""

START_ATTEMPTS = 3
"""How often starting a local Ray is attempted: on a busy machine the first start may time out."""


@dataclass(frozen=True)
class RayConfig(Settings):
    """Number of workers and their resources; ``configs/rollouts/ray.yaml``.

    Attributes:
        workers: number of actors.
        cpus: cores (and torch threads) per worker; ``None`` divides the cluster's cores; below 1 if there are fewer
            cores than workers.
        gpus: GPUs per worker, a fraction to share one; ``None`` divides the cluster's GPUs, at most one each.
        timeout: seconds after which a worker that has not answered counts as hung.
        start_timeout: seconds for a worker to start and load its weights.
        patience: how often in a row a worker may be lost before an error is raised.
        address: address of a running Ray cluster; ``None`` for ``$RAY_ADDRESS``, or a local Ray if that is not set.
    """

    section: ClassVar[str] = "rollouts"
    retired: ClassVar[Mapping[str, str]] = removed_in(section)

    workers: Annotated[int, Gt(0)] = 2
    cpus: float | None = None
    gpus: float | None = None
    timeout: Annotated[float, Gt(0)] = 600.0
    start_timeout: Annotated[float, Gt(0)] = 900.0
    patience: Annotated[int, Gt(0)] = 3
    address: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any] | RayConfig) -> RayConfig:
        """From configuration, without the key ``kind``, which the caller reads; see :meth:`.Settings.of`."""
        kept = {key: value for key, value in given.items() if key != "kind"} if isinstance(given, Mapping) else given
        return super().of(kept)

    @property
    def threads(self) -> int:
        """Number of torch threads of a worker."""
        return max(1, int(self.cpus or 1))

    def shares(self, lanes: int) -> list[range]:
        """The lanes of each worker: consecutive ranges whose sizes differ by at most one.

        Raises:
            ConfigError: if a worker would have no lane.

        >>> RayConfig(workers=2).shares(5)
        [range(0, 3), range(3, 5)]
        """
        if lanes < self.workers:
            raise ConfigError(
                f"{lanes} lanes cannot be shared by {self.workers} workers", "lower rollouts.workers or raise lanes"
            )
        size, more = divmod(lanes, self.workers)
        starts = [index * size + min(index, more) for index in range(self.workers + 1)]
        return [range(*pair) for pair in zip(starts[:-1], starts[1:], strict=True)]


class LostWorkerError(Exception):
    """A worker did not answer.

    Args:
        cause: ``died`` or ``hung``.
        detail: Ray's message.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause


@dataclass
class Actor:
    """One actor.

    Attributes:
        handle: Ray's actor handle.
        pid: process id; ``None`` until it has started.
        node: Ray's id of its node.
        losses: how often it was lost since its last answer.
    """

    handle: Any
    pid: int | None = None
    node: str = ""
    losses: int = 0


class BaseWorker:
    """Base class of all actors.

    Attributes:
        setup: initialises the worker.
    """

    setup: Callable[..., None]

    def where(self) -> tuple[int, str]:
        """The worker's process id and Ray's id of its node."""
        import ray

        return os.getpid(), ray.get_runtime_context().get_node_id()

    def start(self, plugins: Sequence[str], threads: int, *arguments: Any) -> None:
        """Imports the plugins of the parent process, sets the number of torch threads, then calls ``setup``."""
        load_plugins(plugins)
        torch.set_num_threads(threads)
        self.setup(*arguments)

    @staticmethod
    def check_identity(planned: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Checks that a worker holds what the process that asks holds: its results would be labelled incorrectly.

        Raises:
            WorkerError: when it has other weights, precision or packages.
        """
        if own != planned:
            raise WorkerError(
                f"a Ray worker would generate other images than planned: {difference_words(planned, own)}",
                "give all machines the same weights and packages, and set the device and the dtype",
            )


def import_ray() -> Any:
    """Imports the package ``ray``.

    Raises:
        MissingPackageError: if it cannot be imported.
    """
    # Ray reads these at import: no usage statistics unless the user enables them, and normal priority for workers
    # (Ray's default is nice 15, with which they hardly run alongside any other load).
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError(
            f"rollouts=ray needs the package ray, which cannot be imported: {error}",
            "pip install 'addiffusion-env[ray]'",
        ) from error
    return ray


def start_ray(config: RayConfig) -> bool:
    """Connects to a cluster or starts a local Ray; returns whether this call did so.

    Raises:
        MissingPackageError: if Ray is not installed.
        WorkerError: if there is no cluster at the address, or Ray does not start.
    """
    ray = import_ray()
    if ray.is_initialized():
        return False
    address = config.address or os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise WorkerError(
                f"no Ray cluster at {address}: {error}",
                "start one (with a token: set RAY_AUTH_MODE=token), or leave rollouts.address and RAY_ADDRESS empty",
            ) from error
        return True
    for attempt in range(START_ATTEMPTS):
        try:
            ray.init(
                address="local",  # never another user's Ray that runs on this machine
                num_cpus=os.cpu_count(),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE,
                log_to_driver=False,
            )
            break
        except Exception as error:  # Ray raises a plain Exception when its processes do not start within 30 s
            if "timed out" not in str(error) or attempt == START_ATTEMPTS - 1:
                raise WorkerError(f"Ray does not start: {error}", "see /tmp/ray/session_latest/logs") from error
            ray.shutdown()
    return True


def with_shares(config: RayConfig, resources: Mapping[str, float], device: str = "auto") -> RayConfig:
    """The configuration with the cores and GPUs of each worker, where they are not given: equal shares of a cluster's.

    Args:
        config: the configuration.
        resources: Ray's ``CPU`` and ``GPU`` of the whole cluster.
        device: the environment's device; ``cpu`` needs no GPU.

    >>> shared = with_shares(RayConfig(workers=2), {"CPU": 16, "GPU": 1})
    >>> shared.cpus, shared.gpus, shared.threads
    (8.0, 0.5, 8)
    >>> shared = with_shares(RayConfig(workers=4), {"CPU": 2})
    >>> shared.cpus, shared.gpus, shared.threads
    (0.5, 0.0, 1)
    """
    cpus, gpus = config.cpus, config.gpus
    if cpus is None:
        cpus = resources.get("CPU", 1.0) / config.workers
        cpus = float(math.floor(cpus)) if cpus >= 1 else math.floor(cpus * 1000) / 1000
    if gpus is None:
        gpus = 0.0 if device == "cpu" else min(1.0, resources.get("GPU", 0.0) / config.workers)
        gpus = math.floor(gpus * 1000) / 1000
    return replace(config, cpus=cpus, gpus=gpus)


class ActorPool:
    """A pool of actors of one class, each set up with its own arguments.

    Args:
        config: number of workers and their resources.
        kind: a subclass of :class:`BaseWorker`, the errors of whose ``setup`` are raised here.
        arguments: the arguments of each worker's ``setup``.
        device: see :func:`with_shares`.

    Raises:
        MissingPackageError: if Ray is not installed.
        WorkerError: if a worker is lost more than ``patience`` times while it starts.
    """

    def __init__(
        self, config: RayConfig, kind: type[BaseWorker], arguments: Sequence[tuple[Any, ...]], device: str = "auto"
    ) -> None:
        self._ours = start_ray(config)
        self._ray = import_ray()
        self.config = with_shares(config, self._ray.cluster_resources(), device)
        self._actor = self._ray.remote(kind)
        self._arguments = list(arguments)
        self.actors: list[Actor] = []
        try:
            self.actors = [Actor(self._create()) for _ in self._arguments]
            started = [self._set_up(actor, index) for index, actor in enumerate(self.actors)]
            for index, refs in enumerate(started):
                try:
                    self._settle(self.actors[index], refs)
                except LostWorkerError as error:
                    self.replace(index, error)
        except BaseException:
            self.close()
            raise

    def _create(self) -> Any:
        # Ray must not restart an actor itself: a new one must be set up, and its lanes reset, before it is called.
        options = {"num_cpus": self.config.cpus, "num_gpus": self.config.gpus, "max_restarts": 0}
        return self._actor.options(**options, scheduling_strategy="SPREAD").remote()

    def _set_up(self, actor: Actor, index: int) -> tuple[Any, Any]:
        arguments = self._arguments[index]
        started = actor.handle.start.remote(loaded_plugins(), self.config.threads, *arguments)
        return actor.handle.where.remote(), started

    def _settle(self, actor: Actor, refs: tuple[Any, Any]) -> None:
        until = time.monotonic() + self.config.start_timeout
        if not self._ray.wait([refs[0]], timeout=min(PATIENT, self.config.start_timeout))[0]:
            self._warn_waiting()
        actor.pid, actor.node = self._take(refs[0], until)
        self._take(refs[1], until)

    def _warn_waiting(self) -> None:
        """Warns why a worker may not have started: Ray waits silently for resources that are in use."""
        wanted = {"CPU": self.config.cpus, "GPU": self.config.gpus}
        free = self._ray.available_resources()
        needs = ", ".join(f"{need:g} {name} ({free.get(name, 0.0):g} free)" for name, need in wanted.items() if need)
        warnings.warn(
            f"a Ray worker has not started after {PATIENT:g} s; each needs {needs}. Waiting until "
            f"rollouts.start_timeout={self.config.start_timeout:g} s: end the processes that hold them, or lower "
            "rollouts.cpus, rollouts.gpus or rollouts.workers",
            stacklevel=4,
        )

    def ask(self, index: int, method: str, /, *arguments: Any, **named: Any) -> Any:
        """Calls a worker's method; returns Ray's reference to the result."""
        return getattr(self.actors[index].handle, method).remote(*arguments, **named)

    def answer(self, index: int, ref: Any, until: float) -> Any:
        """Waits for a worker's result.

        Args:
            index: the worker.
            ref: the reference from :meth:`ask`.
            until: the deadline, on the clock of ``time.monotonic``.

        Raises:
            LostWorkerError: if the worker died, or has not answered by the deadline.
            Exception: an error of the method, as raised in the worker.
        """
        value = self._take(ref, until)
        self.actors[index].losses = 0
        return value

    def _take(self, ref: Any, until: float) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref, timeout=max(POLL, until - time.monotonic()))
        except errors.RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except errors.GetTimeoutError as error:
            raise LostWorkerError("hung", str(error)) from error
        except errors.RayError as error:  # its process, its node or its result is lost
            raise LostWorkerError("died", str(error).splitlines()[0]) from error

    def replace(self, index: int, error: LostWorkerError) -> None:
        """Ends a lost worker and starts another one with the same arguments in its place.

        Raises:
            WorkerError: if the worker was lost more often in a row than ``patience`` allows.
        """
        while True:
            old = self.actors[index]
            self._end(old, error)
            if old.losses >= self.config.patience:
                raise WorkerError(
                    f"Ray worker {index} was lost {old.losses + 1} times in a row, the last time it {error}",
                    "see its log in /tmp/ray/session_latest/logs; if it only needs more time, raise rollouts.timeout",
                )
            actor = Actor(self._create(), losses=old.losses + 1)
            self.actors[index] = actor
            try:
                return self._settle(actor, self._set_up(actor, index))
            except LostWorkerError as again:
                error = again

    def _end(self, actor: Actor, error: LostWorkerError) -> None:
        """Kills a lost worker's process: a hung one may ignore SIGTERM (as under SIGSTOP) and keep its resources."""
        self._ray.kill(actor.handle, no_restart=True)
        if error.cause != "hung" or actor.pid is None:
            return
        if actor.node == self._ray.get_runtime_context().get_node_id():
            _kill(actor.pid)
            return
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        on_its_node = NodeAffinitySchedulingStrategy(actor.node, soft=False)
        task = self._ray.remote(_kill).options(num_cpus=0, scheduling_strategy=on_its_node)
        with suppress(self._ray.exceptions.RayError):  # if the node is gone, so is the process
            self._ray.get(task.remote(actor.pid), timeout=self.config.start_timeout)

    def close(self) -> None:
        """Ends every worker, and Ray if this pool started it."""
        if not self._ray.is_initialized():
            return
        for actor in self.actors:
            self._ray.kill(actor.handle, no_restart=True)
        self.actors = []
        if self._ours:
            self._ray.shutdown()


def _kill(pid: int) -> None:
    """Sends SIGKILL on this machine; a process that does not exist any more is ignored."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
