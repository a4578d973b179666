"""Where and how numbers are computed: devices, precision, normalised images, predictions.

With precision "bf16" a network runs through a bf16 copy of itself, while its own weights, batch norm,
the optimizer and the loss stay fp32. The copy is refreshed once a step; autocast would cast the
weights wherever they are used.
"""

from __future__ import annotations

import copy
import ctypes
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hpo._process import cpu_model
from hpo.data.dataset import DataInfo
from hpo.errors import InputError, did_you_mean

PREDICT_BATCH, PREDICT_BATCH_ON_GPU = 250, 2000
PREDICT_PIXELS = 32 * 32
"""Larger images come in smaller batches: of 512 × 512 pixels, 2,000 would fill 62 GiB after a convolution."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
"""What tensors hold; with "tf32" a GPU multiplies them with mantissas of 10 bits."""
PRECISIONS = ("auto", *DTYPES)
TF32_CAPABILITY = (8, 0)


def processor(device: str) -> str:
    """Return the model of GPU or CPU that a resolved device is, as its maker names it."""
    if device == "mps":
        return "Apple GPU"
    if device != "cpu":
        return str(torch.cuda.get_device_name(device))
    return cpu_model()


def resolve_device(name: str) -> str:
    """Return the device that a name means: "cpu", "cuda:N" or "mps"; "auto" takes a CUDA device or the CPU.

    Apple's "mps" is untested: whoever wants it says so.

    Raises:
        InputError: an unknown name, no GPU, no GPU of that index, or one that takes no more work.
    """
    kind, _, index = name.partition(":")
    if name == "auto":
        name, kind = ("cuda", "cuda") if torch.cuda.is_available() else ("cpu", "cpu")
    if name == "cpu":
        return "cpu"
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise InputError(
                "device = 'mps': PyTorch sees no Apple GPU here, which needs macOS on Apple silicon; "
                "use 'cpu' or 'auto'"
            )
        check_usable("mps")
        return "mps"
    if kind != "cuda" or not (index.isdecimal() or name == "cuda"):
        raise InputError(f"device = {name!r}: known: auto, cpu, cuda, cuda:1, …, mps")
    count = torch.cuda.device_count()
    if not count:
        raise InputError(f"device = {name!r}: PyTorch sees no CUDA device here; use 'cpu' or 'auto'")
    if int(index or 0) >= count:
        raise InputError(f"device = {name!r}: there are {count}, counted from cuda:0")
    device = f"cuda:{int(index or 0)}"
    check_usable(device)
    return device


def check_usable(device: str) -> None:
    """Check that a device does something for this process: another may hold all its memory, or all of it.

    Raises:
        InputError: it does not; the text says why.
    """
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, torch.cuda.DeferredCudaCallError) as error:
        why = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(
            f"device = {device!r} cannot be used: {why}; see what else runs on it, or use 'cpu'"
        ) from error


def visible_gpus() -> list[str]:
    """Return the GPUs of this machine that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(map(str, range(count))) if named is None else named.split(",")[:count]


def resolve_precision(name: str, device: str) -> str:
    """Return the precision that a name means on a resolved device: "fp32", "tf32" or "bf16".

    "auto" is bf16 where the hardware multiplies bf16 natively; elsewhere bf16 is emulated and slower.

    Raises:
        InputError: an unknown name, or one that the device does not know.
    """
    if name not in PRECISIONS:
        raise InputError(f"precision = {name!r}: {did_you_mean(name, PRECISIONS)}")
    if device == "mps" and name not in ("auto", "fp32"):
        raise InputError(f"precision = {name!r}: on mps hpo trains in fp32; use 'fp32' or 'auto'")
    if name == "tf32" and (device == "cpu" or torch.cuda.get_device_capability(device) < TF32_CAPABILITY):
        raise InputError(
            f"precision = 'tf32': {processor(device)} does not multiply so, NVIDIA's GPUs do from Ampere on; "
            "use 'fp32' or 'auto'"
        )
    if name != "auto":
        return name
    if device == "mps":
        return "fp32"
    if device == "cpu":
        # PyTorch 2.10 cannot be asked; fp32 is right everywhere
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        native = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    else:
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"


def sum_dtype(device: str) -> torch.dtype:
    """Return the type that a device sums losses in: float64 where it has one."""
    return torch.float32 if device == "mps" else torch.float64


def in_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on the CPU where its device has no such numbers."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def as_tensor(array: NDArray[np.generic], device: str) -> Tensor:
    """Return an array on a device; on the CPU the tensor shares the array's memory."""
    return torch.from_numpy(array).to(device)


def targets_tensor(array: NDArray[np.generic], device: str) -> Tensor:
    """Return targets on a device as losses and metrics get them: classes (n,), numbers (n, n_outputs).

    Numbers have the shape of outputs: (n,) beside (n, 1) would broadcast to (n, n), and nobody would be told.
    """
    targets = as_tensor(array, device)
    return targets.unsqueeze(1) if targets.is_floating_point() and targets.dim() == 1 else targets


class Normaliser:
    """Turns uint8 images (n, h, w, c) into float32 (n, c, h, w) in channels_last memory.

    Args:
        mean: (c,), of the pixels scaled to 0..1.
        std: (c,), likewise.
        image_shape: (h, w, c).
        device: where the images are.
    """

    def __init__(
        self, mean: NDArray[np.floating], std: NDArray[np.floating], image_shape: Sequence[int], device: str
    ) -> None:
        # spelt out to (h, w, c): broadcasting over 3 channels would make loops of length 3
        self._scale = torch.as_tensor(1 / (255 * std), dtype=torch.float32).repeat(*image_shape[:2], 1)
        self._shift = torch.as_tensor(-mean / std, dtype=torch.float32).repeat(*image_shape[:2], 1)
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise; see the class."""
        return torch.addcmul(self._shift, images, self._scale).permute(0, 3, 1, 2)

    def gathered(self, images: Tensor, order: Tensor, dtype: torch.dtype) -> Tensor:
        """Return `self(images[order])` in a dtype, by one of Triton's kernels."""
        from hpo.training.kernels import gather_normalised

        return gather_normalised(images, order, self._scale, self._shift, dtype)


class Standardiser:
    """Turns float32 inputs (n, …) into ones of mean 0 and deviation 1.

    Args:
        mean: (features,) of a table, else (1,).
        std: likewise.
        device: where the inputs are.
    """

    def __init__(self, mean: NDArray[np.floating], std: NDArray[np.floating], device: str) -> None:
        self._mean = torch.as_tensor(mean, dtype=torch.float32, device=device)
        self._std = torch.as_tensor(std, dtype=torch.float32, device=device)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Standardise; integers stay as they are."""
        return (inputs - self._mean) / self._std if inputs.is_floating_point() else inputs


Normalise = Callable[[Tensor], Tensor]
"""Turns inputs as data have them into what a network sees."""


def normaliser(
    mean: NDArray[np.floating], std: NDArray[np.floating], info: DataInfo, device: str
) -> Normalise:
    """Return what prepares the inputs of such data on a device."""
    if not info.is_images:
        return Standardiser(mean, std, device)
    channels, height, width = info.input_shape
    return Normaliser(mean, std, (height, width, channels), device)


def to_dtype(inputs: Tensor, precision: str) -> Tensor:
    """Return inputs in the type of a precision; integers stay as they are."""
    return inputs.to(DTYPES[precision]) if inputs.is_floating_point() else inputs


def bf16_copy(network: nn.Module) -> nn.Module:
    """Return a copy with bf16 weights that shares the batch norms, whose statistics need fp32."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    low = copy.deepcopy(network, {id(norm): norm for norm in norms})
    of_norms = {id(tensor) for norm in norms for tensor in (*norm.parameters(), *norm.buffers())}
    for tensor in (*low.parameters(), *low.buffers()):
        if id(tensor) not in of_norms and tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.bfloat16)
    return low


@contextmanager
def evaluating(network: nn.Module, precision: str) -> Iterator[nn.Module]:
    """Lend a network ready for evaluation in a precision: evaluation mode, no autograd."""
    was_training = network.training
    runner = bf16_copy(network) if precision == "bf16" else network
    runner.eval()
    try:
        with torch.inference_mode():
            yield runner
    finally:
        network.train(was_training)


def batches(inputs: Tensor, normalise: Normalise, precision: str) -> Iterator[Tensor]:
    """Yield batches of inputs (n, …), as data have them, as a network of that precision wants them."""
    most = PREDICT_BATCH_ON_GPU if inputs.is_cuda else PREDICT_BATCH
    n_fitting = most * PREDICT_PIXELS // math.prod(inputs.shape[1:-1])
    for part in torch.split(inputs, max(1, min(most, n_fitting))):
        yield to_dtype(normalise(part), precision)


def predict(
    network: nn.Module,
    inputs: NDArray[np.generic],
    normalise: Normalise,
    *,
    device: str = "cpu",
    precision: str = "fp32",
) -> Tensor:
    """Return the outputs of a network for any number of inputs, without autograd, in evaluation mode.

    Args:
        network: fp32, on the device; its mode is left as it was.
        inputs: (n, …) as data have them, n ≥ 1.
        normalise: as from `normaliser`.
        device: as `resolve_device` returns it.
        precision: of the arithmetic, as `resolve_precision` returns it.

    Returns:
        (n, n_outputs) float32 on the CPU.
    """
    with evaluating(network, precision) as runner:
        parts = batches(as_tensor(inputs, device), normalise, precision)
        return torch.cat([runner(part).float() for part in parts]).reshape(len(inputs), -1).cpu()


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step; for processes that do little but train.

    By default it returns the larger activations to the system and has them zeroed again page by page at
    every step, which took 2 to 5 % of the time on two busy cores. Other C libraries are left alone.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        if not libc.mallopt(_M_MMAP_THRESHOLD, 2**30):
            libc.mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most that older ones take
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
