"""Encodes an image window by window with ONNX Runtime and gives exactly the codes of the whole image; the windows are TilePlan's.

    python embed_tiles.py bundle 512 image.npy codes.npy

image.npy holds uint8 [H, W, 3], sides multiples of the model's f. codes.npy gets int32 [G, h, w].
"""

import sys

import numpy as np
import onnxruntime as ort

from mgvq_export import Bundle
from mgvq_export.core.spec import Part
from mgvq_export.runtime.tiling.windows import TilePlan


def main(folder, side, source, target):
    bundle = Bundle.open(folder)
    parts = (Part.ENCODER_TRUNK, Part.ENCODER_HEAD, Part.QUANTIZER)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    trunk, head, quantizer = (ort.InferenceSession(str(bundle.graph_path("fp32", part)), options) for part in parts)

    image = np.load(source)
    values = ((image.astype(np.float32) / 255 - 0.5) * 2).transpose(2, 0, 1)[None]  # [1, 3, H, W]
    plan = TilePlan.fit(image.shape[:2], bundle.reach(Part.ENCODER_TRUNK), (int(side), int(side)))
    print(plan)  # for 2560x1440: windows 32 of 512x512, halo 88, tiling overhead 2.28
    features = None
    for window in plan.windows:
        (found,) = trunk.run(None, {"image": np.ascontiguousarray(values[(..., *window.source)])})
        if features is None:
            features = np.empty((1, found.shape[1], *plan.output_size), found.dtype)
        features[(..., *window.kept)] = found[(..., *window.crop)]
    (latent,) = head.run(None, {"features": features})  # once: its attention looks at the whole map
    (codes,) = quantizer.run(["codes"], {"latent": latent})
    np.save(target, codes[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
