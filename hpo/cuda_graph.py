"""Many kernels as one launch: on a GPU a step of a small network waits for launches, not for arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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
            with torch.cuda.graph(graph):  # records without running
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
