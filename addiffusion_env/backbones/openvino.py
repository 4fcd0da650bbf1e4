"""Networks on OpenVINO instead of torch: an optional inference engine for processors (extra ``openvino``).

A network stays a torch module, with its weights, and is converted when it is first called. A row's numbers do not
depend on the other rows of its batch, to the last bit; they do on precision and number of threads, which are part of
the :attr:`OpenVino.identity`. Four properties of OpenVINO 2026.4 are guarded against here:

- a request that gets an array of another shape than its network's writes beyond its memory;
- a compiled network that is called from two threads mixes their results, so each thread has a request of its own;
- its cache of compiled networks gives the old weights to a network whose file was replaced, so it is not used;
- NaN in the input of a decoder gives a finite image.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import tempfile
import threading
import warnings
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from addiffusion_env.backbones import Identified
from addiffusion_env.backbones.base import Load
from addiffusion_env.backbones.batches import FeatureHook, finite_rows
from addiffusion_env.backbones.devices import resolve_device
from addiffusion_env.backbones.fingerprint import digest_of, layers_of, name_of, sampled, versions_of, weights_of
from addiffusion_env.backbones.identity import described, packages
from addiffusion_env.errors import CapabilityError, ConfigError, MissingPackageError, NumericsError, nearest, unknown
from addiffusion_env.files import in_a_line, whole_file

ENGINES = ("torch", "openvino")
"""Values of ``backbone_options.engine``."""

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
"""dtype -> OpenVINO's name. By itself it takes bfloat16 wherever the processor has it."""

FORMAT = 1
"""Counted up when code of this package changes what networks of the same weights are converted to."""

CACHE = Path("~/.cache/addiffusion/openvino")
"""Folder of converted networks; it may be deleted at any time."""

Function = Callable[..., tuple[Tensor, ...]]
"""Calls a network: (network, *inputs) -> its outputs, all batch first."""


class OpenVino(Identified):
    """Runs networks on OpenVINO, on the CPU.

    Args:
        dtype: ``float32``, or ``bfloat16`` on a processor that has it; weights and results are float32 in any case.

    Attributes:
        dtype: see above.
        threads: number of threads of a call: torch's, when the engine is made.

    Raises:
        ConfigError: for another precision, or one that the processor lacks.
        MissingPackageError: when OpenVINO is not installed.
    """

    def __init__(self, dtype: str = "float32") -> None:
        if dtype not in PRECISIONS:
            raise ConfigError(f"engine=openvino has no dtype {dtype!r}", nearest(dtype, ["auto", *PRECISIONS]))
        can = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if dtype == "bfloat16" and "BF16" not in can:
            raise ConfigError(
                f"dtype=bfloat16 was requested with engine=openvino, and this processor only has {', '.join(can)}",
                "use dtype=float32",
            )
        self.dtype = dtype
        self.threads = torch.get_num_threads()
        self._process = os.getpid()
        self._entries: weakref.WeakKeyDictionary[nn.Module, _Entry] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    @property
    def identity(self) -> Mapping[str, Any]:
        """Engine, precision and threads; the class adds OpenVINO's version to an identity's packages."""
        return {"class": "openvino.Core", "dtype": self.dtype, "threads": self.threads}

    def __reduce__(self) -> tuple[Any, ...]:
        # Converted networks cannot be copied or pickled: the copy converts them again.
        return OpenVino, (self.dtype,)

    def run(self, function: Function, network: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs of ``function(network, *inputs)``, float32; NaN in a row whose input is not finite.

        Args:
            function: how the network is called: a function of a module, always the same one for a network.
            network: converted at its first call, and again when its weights were changed in place.
            *inputs: float32, batch first; all but the number of rows is fixed by the first call.

        Raises:
            CapabilityError: for inputs of another shape or type, a network that cannot be converted, or one with a
                hook, which would not be called; after a fork with more than one thread, which would hang.
            NumericsError: for weights that are not finite, at conversion.
        """
        if self.threads > 1 and os.getpid() != self._process:
            raise CapabilityError(
                f"OpenVINO with {self.threads} threads was loaded before this process was forked, and hangs in it",
                "start processes with spawn or forkserver, or set OMP_NUM_THREADS=1",
            )
        with self._lock:
            entry = self._entries.get(network)
            state = versions_of(network)
            _refuse_hooks(network)
            if entry is not None:
                entry.check(type(network).__name__, inputs)
            if entry is None or entry.versions != state:
                # A network that was changed in memory is not kept on disk: training would fill it.
                source = _model_of(function, network, inputs, keep=entry is None)
                entry = _Entry(state, sampled(network), inputs, self._compile(source))
                entry.check(type(network).__name__, inputs)
                self._entries[network] = entry
        return entry.call(inputs)

    def refresh(self, *networks: nn.Module) -> None:
        """Forgets those of ``networks`` whose weights changed, also through ``.data``, which :meth:`run` misses."""
        with self._lock:
            for network in networks:
                entry = self._entries.get(network)
                if entry is not None and entry.sample != sampled(network):
                    entry.versions = ()

    def _compile(self, source: tuple[bytes, bytes]) -> Any:
        # Not from a path: OpenVINO's cache then compares the time of one of its two files only.
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.dtype],
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # which core is left to the system: workers share a machine
        }
        return core().compile_model(core().read_model(*source), "CPU", settings)


def engine_of(load: Load) -> OpenVino:
    """The engine that a backbone's options name, other than torch.

    Raises:
        UnknownNameError: for another name.
        ConfigError: for a device other than the CPU, or an invalid precision.
        MissingPackageError: when OpenVINO is not installed.
    """
    name = load.options["engine"]
    if name not in ENGINES:
        raise unknown("engine", str(name), ENGINES)
    if load.device != "auto" and resolve_device(load.device).type != "cpu":
        raise ConfigError(f"engine=openvino runs on the CPU, got device={load.device!r}", "use device=cpu")
    return OpenVino("float32" if load.dtype == "auto" else load.dtype)


@functools.cache
def core() -> Any:
    """OpenVINO's entry point, one per process.

    Raises:
        MissingPackageError: when it is not installed.
    """
    try:
        with _without_telemetry():
            import openvino
    except ImportError as error:
        raise MissingPackageError(
            f"engine=openvino needs the package openvino, which cannot be imported: {error}",
            "pip install 'addiffusion-env[openvino]', or leave engine out",
        ) from error
    return openvino.Core()


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Context manager of OpenVINO's first import, which otherwise reports it, and each conversion, to its makers."""
    if "openvino_telemetry" in sys.modules:
        yield
        return
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["openvino_telemetry"]


@dataclass
class _Entry:
    """A compiled network, and the state of the torch module that it was made from."""

    versions: tuple[Any, ...]
    sample: tuple[Any, ...]
    example: Sequence[Tensor]
    compiled: Any
    requests: threading.local = field(default_factory=threading.local)

    def __post_init__(self) -> None:
        self.example = [value[:0] for value in self.example]

    def check(self, name: str, inputs: Sequence[Tensor]) -> None:
        shapes = [(len(inputs[0]), *value.shape[1:]) for value in self.example]
        if [tuple(value.shape) for value in inputs] != shapes or any(v.dtype != torch.float32 for v in inputs):
            found = ", ".join(f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}" for value in inputs)
            raise CapabilityError(
                f"{name} on OpenVINO takes float32 inputs of shapes {', '.join(map(str, shapes))}, got {found}",
                "use the model's own size, or load it without engine=openvino",
            )

    def call(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        rows = len(inputs[0])
        request = getattr(self.requests, "request", None)
        if request is None:
            request = self.requests.request = self.compiled.create_infer_request()
        arrays = [value.detach().cpu().contiguous().numpy() for value in inputs]
        found = request.infer(arrays, share_inputs=False, share_outputs=False)
        outputs = tuple(torch.from_numpy(found[index]) for index in range(len(self.compiled.outputs)))
        if rows:
            finite = torch.stack([finite_rows(value.reshape(rows, -1)) for value in inputs]).all(0)
            if not finite.all():
                for value in outputs:
                    value[~finite] = float("nan")
        return outputs


def _refuse_hooks(network: nn.Module) -> None:
    for layer in layers_of(network):
        if layer._forward_hooks or layer._forward_pre_hooks:
            for hook in (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()):
                if not isinstance(hook, FeatureHook):
                    place = next(name for name, module in network.named_modules() if module is layer)
                    raise CapabilityError(
                        f"{type(network).__name__} runs on OpenVINO, where the hook {name_of(hook)} of its layer "
                        f"{place or 'itself'!r} is not called",
                        "remove the hook, or load the backbone without engine=openvino",
                    )


def _model_of(function: Function, network: nn.Module, inputs: Sequence[Tensor], keep: bool) -> tuple[bytes, bytes]:
    """OpenVINO's two files of a network: from the cache, or converted, and then kept there."""
    for name, value in weights_of(network):
        if value.is_floating_point() and not value.isfinite().all():
            raise NumericsError(f"{type(network).__name__} has NaN or infinity in {name}", "load its weights again")
    network_identity = described(network)
    made = {
        "network": network_identity,
        "packages": packages(
            [network_identity, *({"class": name} for name in ("openvino", "diffusers", "transformers"))]
        ),
        "function": [name_of(function), inspect.getsource(function)],
        "inputs": [list(value.shape[1:]) for value in inputs],
        "format": FORMAT,
    }
    path = CACHE / f"{digest_of(made)}.npz"
    known = _read(path)
    if known is None:
        known = _converted(function, network, inputs)
        if keep:
            _write(path, known)
    return known


def _converted(function: Function, network: nn.Module, inputs: Sequence[Tensor]) -> tuple[bytes, bytes]:
    import openvino

    # Three rows: torch's traces of one row may hold that there is one.
    example = tuple(value[:1].repeat(3, *(1 for _ in value.shape[1:])) for value in inputs)
    try:
        with torch.no_grad(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")  # of constants in the trace, such as sizes, which are fixed here
            # Of a function, not a module: in a third of the time, and transformers' properties are left alone.
            traced = torch.jit.trace(lambda *values: function(network, *values), example, check_trace=False)
            model = openvino.convert_model(traced, example_input=example)
            model.reshape({index: [-1, *value.shape[1:]] for index, value in enumerate(example)})
            file = Path(folder, "network.xml")
            openvino.save_model(model, file, compress_to_fp16=False)
            return file.read_bytes(), file.with_suffix(".bin").read_bytes()
    except Exception as error:
        raise CapabilityError(
            f"{type(network).__name__} cannot be converted for OpenVINO: {in_a_line(error)}",
            "load the backbone without engine=openvino",
        ) from error


def _read(path: Path) -> tuple[bytes, bytes] | None:
    try:
        with np.load(path.expanduser(), allow_pickle=False) as held:  # a zip, which has checksums
            return held["network"].tobytes(), held["weights"].tobytes()
    except (FileNotFoundError, NotADirectoryError, RuntimeError):  # the last without a home folder
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        warnings.warn(f"converted network {path} cannot be read ({in_a_line(error)}): converting again", stacklevel=4)
        return None


def _write(path: Path, source: tuple[bytes, bytes]) -> None:
    network, weights = (np.frombuffer(part, np.uint8) for part in source)
    try:
        target = path.expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as file:
            np.savez(file, network=network, weights=weights)
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"converted networks cannot be kept in {path.parent} ({in_a_line(error)})\n"
            "every process converts them again, in some seconds: make that folder writable",
            UserWarning,
            stacklevel=4,
        )
