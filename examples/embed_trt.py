"""Encodes and decodes an image with the engines of a bundle: needs tensorrt, cuda-bindings and numpy, and nothing else.

    python embed_trt.py bundle/engines/nvidia-h200-trt11.4.0.106/fp16 image.npy again.npz

image.npy holds uint8 [H, W, 3], of a size that the engines were built for. again.npz gets codes, int32 [G, h, w], and the image
decoded from them, uint8 [H, W, 3].
"""

import sys
from pathlib import Path

import numpy as np
import tensorrt as trt
from cuda.bindings import runtime as cudart


def cuda(function, *arguments):
    """Calls CUDA and checks."""
    status, *values = function(*arguments)
    if status != cudart.cudaError_t.cudaSuccess:
        raise RuntimeError(f"{function.__name__}: {status.name}")
    return values[0] if len(values) == 1 else tuple(values)


class Engine:
    """One engine with a context, and device memory for what it gives. Everything is queued on one stream."""

    def __init__(self, runtime, path, stream):
        self.engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise RuntimeError(f"{path} does not load: was it built with this TensorRT, on this GPU?")
        self.context = self.engine.create_execution_context()
        self.stream = stream
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        self.inputs = [name for name in names if self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]
        self.memory = {}  # name -> (address, bytes)

    def run(self, **inputs):
        """Queues one run. Takes and gives name=(device address, shape)."""
        shapes = {name: shape for name, (_, shape) in inputs.items()}
        dynamic = [name for name in self.inputs if -1 in tuple(self.engine.get_tensor_shape(name))]
        self.context.set_optimization_profile_async(self.profile(dynamic, shapes), self.stream)
        for name in dynamic:
            self.context.set_input_shape(name, shapes[name])
        if missing := self.context.infer_shapes():
            raise RuntimeError(f"the shapes of {missing} are not known")
        outputs = {name: tuple(self.context.get_tensor_shape(name)) for name in self.outputs}
        found = {name: (self.allocate(name, shape), shape) for name, shape in outputs.items()}
        for name, (address, _) in {**inputs, **found}.items():
            self.context.set_tensor_address(name, address)
        if not self.context.execute_async_v3(self.stream):
            raise RuntimeError("TensorRT did not run; its log says why")
        return found

    def profile(self, dynamic, shapes):
        """The optimisation profile that holds these shapes. Engines have one for every size they were built for."""
        for profile in range(self.engine.num_optimization_profiles):
            limits = [(self.engine.get_tensor_profile_shape(name, profile), shapes[name]) for name in dynamic]
            if all(
                all(low <= side <= high for low, side, high in zip(least, shape, most, strict=True))
                for (least, _, most), shape in limits
            ):
                return profile
        raise ValueError(f"the engine was not built for {shapes}")

    def allocate(self, name, shape):
        size = int(np.prod(shape)) * self.engine.get_tensor_dtype(name).itemsize
        address, room = self.memory.get(name, (0, 0))
        if size > room:
            if address:
                cuda(cudart.cudaStreamSynchronize, self.stream)
                cuda(cudart.cudaFree, address)
            address = cuda(cudart.cudaMalloc, size)
            self.memory[name] = address, size
        return address


def upload(array, stream):
    """A new copy of ``array`` on the device: (address, shape)."""
    address = cuda(cudart.cudaMalloc, array.nbytes)
    kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
    cuda(cudart.cudaMemcpyAsync, address, array.ctypes.data, array.nbytes, kind, stream)
    return address, array.shape


def download(value, dtype, stream):
    """The array at (address, shape), once everything queued is done."""
    address, shape = value
    array = np.empty(shape, dtype)
    cuda(cudart.cudaMemcpyAsync, array.ctypes.data, address, array.nbytes, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)
    cuda(cudart.cudaStreamSynchronize, stream)
    return array


def main(folder, source, target):
    image = np.ascontiguousarray(np.load(source)[None])  # uint8 [1, H, W, 3]
    stream = cuda(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    parts = ("encoder", "quantizer", "dequantizer", "decoder")
    encoder, quantizer, dequantizer, decoder = (Engine(runtime, Path(folder) / f"{part}.engine", int(stream)) for part in parts)

    encoded = encoder.run(image=upload(image, stream))
    codes = quantizer.run(latent=encoded["latent"])["codes"]
    groups = upload(np.array(codes[1][1], np.int64), stream)  # all of them; fewer give a coarser image
    quantized = dequantizer.run(codes=codes, groups=groups)["quantized"]
    decoded = decoder.run(quantized=quantized)

    again = download(decoded["image"], np.uint8, stream)
    flags = [download(found["non_finite"], np.int32, stream) for found in (encoded, decoded)]
    if np.any(flags):
        raise RuntimeError("a value was NaN or infinite on the way")
    np.savez(target, codes=download(codes, np.int32, stream)[0], image=again[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
