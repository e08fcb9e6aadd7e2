"""Encodes and decodes images with a Triton server: needs mgvq-export, tritonclient[http] and nothing of the bundle.

    python triton_client.py encode 127.0.0.1:8000 photo.jpg photo.safetensors
    python triton_client.py decode 127.0.0.1:8000 photo.safetensors again.png [groups]

The repository is one that ``mgvq-export publish`` wrote with the target triton-python. The tokens file is the same as that of
``mgvq-export encode``.
"""

import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton

from mgvq_export import Tokens
from mgvq_export.runtime.image_files import write_image

TIMEOUT = 60.0  # seconds, for one answer


def tensor(name, values):
    """``values`` as a request's input, a batch of one."""
    dtype = {"uint8": "UINT8", "uint16": "UINT16", "int32": "INT32"}[values.dtype.name]
    found = triton.InferInput(name, [1, *values.shape], dtype)
    found.set_data_from_numpy(values[None])
    return found


def encode(client, source, target):
    data = np.frombuffer(Path(source).read_bytes(), np.uint8)
    answer = client.infer("mgvq_encode_file", [tensor("file", data)])
    height, width = answer.as_numpy("size")[0]
    # What the model was made of is in its configuration: a tokens file says which codebook its codes belong to.
    made_of = {key: value["string_value"] for key, value in client.get_model_config("mgvq_encode_file")["parameters"].items()}
    tokens = Tokens(
        answer.as_numpy("codes")[0],
        (int(height), int(width)),
        made_of["model"],
        made_of["codebook_sha256"],
        int(made_of["codes_per_group"]),
        int(made_of["downsample"]),
    )
    tokens.save(target)


def decode(client, source, target, groups=None):
    tokens = Tokens.load(source)
    made_of = client.get_model_config("mgvq_decode")["parameters"]
    tokens.check_codebook(made_of["model"]["string_value"], made_of["codebook_sha256"]["string_value"])
    inputs = [tensor("codes", tokens.codes), tensor("size", np.array(tokens.image_size, np.int32))]
    if groups is not None:
        inputs.append(tensor("groups", np.array([int(groups)], np.int32)))
    write_image(target, client.infer("mgvq_decode", inputs).as_numpy("image")[0])


def main(verb, address, *words):
    with triton.InferenceServerClient(address, connection_timeout=TIMEOUT, network_timeout=TIMEOUT) as client:
        {"encode": encode, "decode": decode}[verb](client, *words)


if __name__ == "__main__":
    main(*sys.argv[1:])
