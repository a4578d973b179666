"""What a GPU needs to be busy with small networks: many kernels as one launch, and several seeds and trials
beside each other. On a CPU all of it is a plain call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

_RECORDING = threading.Lock()


def prepare(device: str, precision: str) -> None:
    """Sets what the results of a process's training depend on, for a resolved device and precision."""
    if device == "cpu":
        return
    # same seed, same bits: cuDNN's fastest gradients of weights add up in any order
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def streams(device: str, count: int) -> list[torch.cuda.Stream | None]:
    """A queue of work for each of several; None where work waits in no queue of its own."""
    if device == "cpu" or count == 1:
        return [None] * count
    return [torch.cuda.Stream(device) for _ in range(count)]  # type: ignore[no-untyped-call]


@contextmanager
def on(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """What is launched in the context goes into that queue."""
    with nullcontext() if stream is None else torch.cuda.stream(stream):
        yield


@contextmanager
def joining(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Has a queue begin after what was launched before the context, and what follows it after the queue."""
    if stream is None:
        yield
        return
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    try:
        yield
    finally:
        current.wait_stream(stream)


@contextmanager
def beside_others(device: str) -> Iterator[None]:
    """Trains on a queue of the calling thread's own, so that threads do not wait for each other's work."""
    if device == "cpu":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        yield


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the device was asked for in vain."""
    is_of_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return is_of_cpu or isinstance(error, (MemoryError, torch.OutOfMemoryError))


class CudaGraph:
    """A function of tensors on a GPU, recorded once and replayed (CUDA Graphs, as PyTorch's notes have it).

    The first call runs the function as it is, since libraries set themselves up at a first call; the second
    records it. From then on a call copies the inputs to where the recording reads them, and replays it.

    Args:
        function: launches the same kernels at every call, on tensors that stay where they are: it neither
            reads a value from the GPU nor brings one there. Its results are new tensors.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self._function = function
        self._is_warm = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the function returns, in tensors that the next call overwrites.

        Args:
            inputs: of the same shapes and dtypes at every call.
        """
        if not self._is_warm:
            self._is_warm = True
            return self._on_another_stream(inputs)
        if self._graph is None:
            self._inputs = tuple(each.clone() for each in inputs)
            graph = torch.cuda.CUDAGraph()
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            # records without running; other threads may allocate meanwhile, but not record
            with _RECORDING, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._outputs = self._function(*self._inputs)
            self._graph = graph
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._outputs

    def _on_another_stream(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # autograd remembers the stream of a parameter's first use; the default stream cannot be recorded
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            outputs = self._function(*inputs)
        current.wait_stream(stream)
        return outputs
