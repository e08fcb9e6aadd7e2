"""The few CUDA runtime calls that a TensorRT session needs: each is checked, each failure is one line.

Everything works on one stream. Memory is owned by :class:`DeviceBuffer` and :class:`PinnedBuffer`, which grow and are freed by
hand: a buffer may be in use on the stream long after Python has forgotten it.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mgvq_export.core.errors import BackendError, InputError
from mgvq_export.core.types import Untyped
from mgvq_export.ops.trt_machine import import_cudart

_NO_STREAMS = {0: "CUDA's default stream", 1: "CUDA's legacy default stream", 2: "CUDA's per-thread default stream"}


class OutOfDeviceMemory(BackendError):
    """The GPU has too little free memory for what was asked of it."""


@dataclass(frozen=True)
class DeviceMap:
    """Pixels on the device: ``planes`` planes of ``rows`` x ``columns`` pixels, one after another without gaps.

    A uint8 image [H, W, 3] is one plane of 3-byte pixels; a map [C, H, W] is C planes of pixels of one number.
    """

    address: int
    planes: int
    rows: int
    columns: int
    pixel_bytes: int

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.planes * self.rows * self.columns * self.pixel_bytes


class Cuda:
    """CUDA's runtime on the device that was current when this was made, and one stream of it.

    Args:
        stream: handle of a stream of the caller's, who keeps it; None to make one.

    Raises:
        BackendError: cuda-bindings or a GPU is missing, or a call fails. So do all methods.
        InputError: a default stream, which cannot be captured.
    """

    def __init__(self, stream: int | None = None):
        if stream in _NO_STREAMS:
            raise InputError(
                f"stream {stream} is {_NO_STREAMS[stream]}, which CUDA graphs cannot record; give one made with cudaStreamCreate"
            )
        self._cudart = cudart = import_cudart()
        self.device: int = self._checked(cudart.cudaGetDevice(), "cudaGetDevice")
        self._owns_stream = stream is None
        if stream is None:
            handle = self._checked(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking), "cudaStreamCreateWithFlags")
            stream = int(handle)
        self.stream: int = stream

    def close(self) -> None:
        """Destroy the stream if it is our own."""
        if self._owns_stream:
            self._owns_stream = False
            self._checked(self._cudart.cudaStreamDestroy(self.stream), "cudaStreamDestroy")

    def use_device(self) -> None:
        """Make the device current in this thread."""
        self._checked(self._cudart.cudaSetDevice(self.device), "cudaSetDevice")

    def synchronize(self) -> None:
        """Wait until everything queued on the stream is done."""
        self._checked(self._cudart.cudaStreamSynchronize(self.stream), "cudaStreamSynchronize")

    def free_memory(self) -> int:
        """Free device memory, in bytes."""
        free, _ = self._checked(self._cudart.cudaMemGetInfo(), "cudaMemGetInfo")
        return int(free)

    # ---- memory

    def allocate(self, size: int) -> int:
        """The address of ``size`` new bytes of device memory."""
        return int(self._checked(self._cudart.cudaMalloc(size), "cudaMalloc"))

    def free(self, address: int) -> None:
        """Give back what :meth:`allocate` gave."""
        self._checked(self._cudart.cudaFree(address), "cudaFree")

    def allocate_pinned(self, size: int) -> int:
        """The address of ``size`` new bytes of host memory that the GPU copies from and to by itself."""
        cudart = self._cudart
        try:
            return int(self._checked(cudart.cudaHostAlloc(size, cudart.cudaHostAllocDefault), "cudaHostAlloc"))
        except OutOfDeviceMemory:  # of host memory, which smaller windows do not need less of
            raise BackendError(
                f"cannot page-lock {size} bytes of host memory; free some, or raise the limit (ulimit -l)"
            ) from None

    def free_pinned(self, address: int) -> None:
        """Give back what :meth:`allocate_pinned` gave."""
        self._checked(self._cudart.cudaFreeHost(address), "cudaFreeHost")

    # ---- copies, queued on the stream

    def upload(self, device: int, host: int, size: int) -> None:
        """Copy ``size`` bytes from the host address to the device address."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._checked(self._cudart.cudaMemcpyAsync(device, host, size, kind, self.stream), "cudaMemcpyAsync")

    def download(self, host: int, device: int, size: int) -> None:
        """Copy ``size`` bytes from the device address to the host address."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._checked(self._cudart.cudaMemcpyAsync(host, device, size, kind, self.stream), "cudaMemcpyAsync")

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy ``size`` bytes from one device address to another."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._checked(self._cudart.cudaMemcpyAsync(target, source, size, kind, self.stream), "cudaMemcpyAsync")

    def copy_box(
        self, target: DeviceMap, corner: tuple[int, int], source: DeviceMap, source_corner: tuple[int, int], size: tuple[int, int]
    ) -> None:
        """Copy the rectangle of ``size`` (rows, columns) of every plane, from one corner (row, column) to another."""
        cudart, pixel = self._cudart, source.pixel_bytes
        p = cudart.cudaMemcpy3DParms()
        # Without CUDA arrays, positions and extents along x count bytes, and a plane is pitch * ysize bytes.
        p.srcPtr = cudart.make_cudaPitchedPtr(source.address, source.columns * pixel, source.columns * pixel, source.rows)
        p.dstPtr = cudart.make_cudaPitchedPtr(target.address, target.columns * pixel, target.columns * pixel, target.rows)
        p.srcPos = cudart.make_cudaPos(source_corner[1] * pixel, source_corner[0], 0)
        p.dstPos = cudart.make_cudaPos(corner[1] * pixel, corner[0], 0)
        p.extent = cudart.make_cudaExtent(size[1] * pixel, size[0], source.planes)
        p.kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._checked(cudart.cudaMemcpy3DAsync(p, self.stream), "cudaMemcpy3DAsync")

    # ---- graphs

    @contextlib.contextmanager
    def captured(self) -> Iterator[list[Untyped]]:
        """Records what the body queues on the stream instead of running it; at the end the list holds the graph, to be launched.

        Only this thread's work is watched for what cannot be recorded. After an error the stream is usable again.
        """
        cudart = self._cudart
        executable: list[Untyped] = []
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._checked(cudart.cudaStreamBeginCapture(self.stream, mode), "cudaStreamBeginCapture")
        try:
            yield executable
        except BaseException:
            # Ends the recording, whatever has become of it: the error that is on its way says what went wrong.
            status, graph = cudart.cudaStreamEndCapture(self.stream)
            if int(status) == 0:
                cudart.cudaGraphDestroy(graph)
            raise
        graph = self._checked(cudart.cudaStreamEndCapture(self.stream), "cudaStreamEndCapture")
        try:
            executable.append(self._checked(cudart.cudaGraphInstantiate(graph, 0), "cudaGraphInstantiate"))
        finally:
            cudart.cudaGraphDestroy(graph)  # an executable graph does not need the graph it was made from

    def launch_graph(self, executable: Untyped) -> None:
        """Queue a graph that :meth:`captured` made on the stream."""
        self._checked(self._cudart.cudaGraphLaunch(executable, self.stream), "cudaGraphLaunch")

    def destroy_graph(self, executable: Untyped) -> None:
        """Free a graph that :meth:`captured` made."""
        self._checked(self._cudart.cudaGraphExecDestroy(executable), "cudaGraphExecDestroy")

    def _checked(self, result: tuple[Untyped, ...], call: str) -> Untyped:
        status, *values = result
        if int(status) == int(self._cudart.cudaError_t.cudaErrorMemoryAllocation):
            raise OutOfDeviceMemory(f"the GPU is out of memory ({call}); close other programs that use it")
        if int(status) != 0:
            raise BackendError(f"the GPU refused {call} ({status.name}); start again, and check the GPU with nvidia-smi")
        return values[0] if len(values) == 1 else tuple(values)


class Buffer:
    """Memory that grows. The caller waits for the stream before growing or freeing.

    Attributes:
        address: a multiple of 256; 0 while it is empty.
        size: in bytes.
    """

    def __init__(self, allocate: Callable[[int], int], free: Callable[[int], None]):
        self._allocate, self._free = allocate, free
        self.address = 0
        self.size = 0

    def grow(self, size: int) -> None:
        """Hold at least ``size`` bytes; the old content is lost when it must grow."""
        if size > self.size:
            self.free()  # first: the old and the new together may be too much
            self.address = self._allocate(size)
            self.size = size

    def free(self) -> None:
        """Give the memory back; the buffer is empty afterwards and may grow again."""
        address, self.address, self.size = self.address, 0, 0
        if address:
            self._free(address)


class DeviceBuffer(Buffer):
    """A :class:`Buffer` on the device."""

    def __init__(self, cuda: Cuda):
        super().__init__(cuda.allocate, cuda.free)


class PinnedBuffer(Buffer):
    """A :class:`Buffer` of page-locked host memory."""

    def __init__(self, cuda: Cuda):
        super().__init__(cuda.allocate_pinned, cuda.free_pinned)

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The first bytes as an array, valid until the buffer grows or is freed."""
        count = int(np.prod(shape))
        block = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(self.address)
        return np.frombuffer(block, dtype, count).reshape(shape)
