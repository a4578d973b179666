"""Keeps a GPU busy with small networks: many kernels as one launch, and trials beside each other.

On any other device all of it is a plain call.

A stream that is being recorded must not be anybody's to launch on, so there are two kinds of them: PyTorch
hands out 32 of a priority in turn, to all threads alike, and the 33rd is the first one again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress

import torch
from torch import Tensor

from hpo._process import without_garbage_collection

OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "out of memory",
    "ALLOC_FAILED",
    # cuDNN's words where no workspace fits
    "unable to find an engine to execute this computation",
    # where nothing is left for a thread's first call of a library
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_INITIALIZED",
)
"""In the texts of errors that are no `OutOfMemoryError`."""
FAILED = ("CUBLAS_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_INTERNAL_ERROR", "CUDNN_STATUS_EXECUTION_FAILED")
"""In the texts of errors of a device that has failed, as cuBLAS and cuDNN tell it."""
_RECORDING = threading.Lock()
_RECORDERS: dict[str, torch.cuda.Stream] = {}
_OWN = threading.local()


def is_cuda(device: str) -> bool:
    """Return whether a resolved device is a CUDA device: others know neither graphs nor streams."""
    return device.startswith("cuda")


def prepare(device: str, precision: str) -> None:
    """Set what the results of a process's training depend on, for a resolved device and precision."""
    if not is_cuda(device):
        return
    # same seed, same bits: cuDNN's fastest gradients of weights add up in any order
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


class Backlog:
    """What was launched on a device and is not done yet: little of it, so that who launches can be stopped.

    Launches return at once, and an epoch of them may take the device longer than a process has to stop.
    """

    def __init__(self, device: str) -> None:
        self._device, self._launched = device, deque[torch.cuda.Event]()

    def add(self) -> None:
        """Note what was launched since the last call; waits until all but the latest two are done."""
        if not is_cuda(self._device):
            return
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._launched.append(event)
        if len(self._launched) > 2:
            self._launched.popleft().synchronize()


def is_recording() -> bool:
    """Return whether some thread of this process records steps right now."""
    return _RECORDING.locked()


@contextmanager
def beside_others(device: str) -> Iterator[None]:
    """Train on a queue of the calling thread's own, so that threads do not wait for each other's work."""
    with torch.cuda.stream(_own_stream(device)) if is_cuda(device) else nullcontext():
        yield


def _own_stream(device: str) -> torch.cuda.Stream:
    """Return the thread's stream, of high priority, which those that are recorded never have."""
    mine: dict[str, torch.cuda.Stream] = _OWN.__dict__
    if device not in mine:
        mine[device] = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
    return mine[device]


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether memory of the device was asked for in vain, as this error says or one behind it."""
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_lost(error: BaseException) -> bool:
    """Return whether the device does nothing more for this process: every further call would fail."""
    if isinstance(error, RuntimeError) and any(words in str(error) for words in FAILED):
        return True
    if "captur" in str(error).partition("\n")[0]:  # CUDA's words where something cannot be recorded
        return False
    return isinstance(error, torch.cuda.AcceleratorError) and not is_out_of_memory(error)


class CudaGraph:
    """A function of tensors on a GPU, recorded once and replayed (CUDA Graphs, as PyTorch's notes have it).

    The first call runs the function as it is, since libraries set themselves up at a first call; the second
    records it. From then on a call copies the inputs to where the recording reads them, and replays it.

    Args:
        function: launches the same kernels at every call, on tensors that stay where they are: it neither
            reads a value from the GPU nor brings one there. Its results are new tensors.
        device: which GPU, as `resolve_device` returns it.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], device: str) -> None:
        self._function, self._device = function, device
        self._is_warm = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what the function returns, in tensors that the next call overwrites.

        Args:
            inputs: of the same shapes and dtypes at every call.
        """
        if not self._is_warm:
            self._is_warm = True
            return self._function(*inputs)
        if self._graph is None:
            self._inputs = tuple(each.clone() for each in inputs)
            self._graph = self._recorded()
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._outputs

    def _recorded(self) -> torch.cuda.CUDAGraph:
        """Record without running. Other threads may launch and allocate meanwhile, but not record.

        Not by `torch.cuda.graph`, which first waits for all that others have queued on the device.
        """
        # garbage might be a graph or an event, and no recording survives that one is freed
        with _RECORDING, without_garbage_collection():
            if self._device not in _RECORDERS:
                _RECORDERS[self._device] = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            try:
                return self._capture(_RECORDERS[self._device])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # a recording has memory of its own, and while there is one PyTorch gives back none that it keeps
            torch.cuda.empty_cache()
            return self._capture(_RECORDERS[self._device])

    def _capture(self, recorder: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # before torch 2.15 a stream's graphs share cuBLAS's workspace, and run at the same time later
        torch._C._cuda_clearCublasWorkspaces()
        with torch.cuda.stream(recorder):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._outputs = self._function(*self._inputs)
            except BaseException:
                with suppress(Exception):  # what went wrong is the error that is under way
                    self._end(graph)
                raise
            self._end(graph)
        torch._C._cuda_clearCublasWorkspaces()
        return graph

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        try:
            graph.capture_end()
        except Exception:
            with suppress(Exception):
                _free_generator(self._device)
            raise


def _free_generator(device: str) -> None:
    """Have a GPU's generator draw again after a recording that could not be ended.

    In older releases of torch (2.10) it still belongs to that recording, and dropout fails outside of one.
    """
    try:
        torch.empty(1, device=device).uniform_()
    except RuntimeError:
        generator = torch.cuda.default_generators[torch.device(device).index]
        generator.graphsafe_set_state(generator.clone_state())
