"""Encodes and decodes an image with the graphs of a bundle: needs onnxruntime and numpy, and nothing else.

    python embed_ort.py bundle/fp32 image.npy again.npz [cuda]

image.npy holds uint8 [H, W, 3], sides multiples of the model's f. again.npz gets codes, int32 [G, h, w], and the image decoded from
them, uint8 [H, W, 3].
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    # TF32, the default, would move float32 codes between near-equal rows of the codebook.
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}


def load(path, device):
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = ort.InferenceSession(str(path), options, providers=[PROVIDERS[device]])
    if device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise RuntimeError("ONNX Runtime did not load CUDA and would use the CPU; its log says why")
    return session


def main(folder, source, target, device="cpu"):
    parts = ("encoder", "quantizer", "dequantizer", "decoder")
    encoder, quantizer, dequantizer, decoder = (load(Path(folder) / f"{part}.onnx", device) for part in parts)
    dtype = np.float16 if "float16" in encoder.get_inputs()[0].type else np.float32

    image = np.load(source)  # uint8 [H, W, 3]
    values = (image.astype(np.float32) / 255 - 0.5) * 2  # [-1, 1]
    (latent,) = encoder.run(None, {"image": np.ascontiguousarray(values.transpose(2, 0, 1)[None], dtype)})
    (codes,) = quantizer.run(["codes"], {"latent": latent})  # int32 [1, G, h, w]
    groups = np.array(codes.shape[1], np.int64)  # all of them; fewer give a coarser image
    (quantized,) = dequantizer.run(None, {"codes": codes, "groups": groups})
    (decoded,) = decoder.run(None, {"quantized": quantized})  # [1, 3, H, W], not clipped

    again = np.rint(np.clip(decoded[0].astype(np.float32) * 127.5 + 127.5, 0, 255)).astype(np.uint8)
    np.savez(target, codes=codes[0], image=again.transpose(1, 2, 0))


if __name__ == "__main__":
    main(*sys.argv[1:])
