"""The models of a ``triton-python`` repository, as Triton's Python backend runs them: every instance in a process of its own.

A request that cannot be run gets an error of its own, also when it ran in one batch with others: code INVALID_ARG for what the
client can mend, INTERNAL for the rest.
"""

from __future__ import annotations

import importlib
import json
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from mgvq_export.core.errors import BackendError, InputError, MgvqError, TokensError
from mgvq_export.core.types import Untyped
from mgvq_export.runtime.tokenizer import Tokenizer
from mgvq_export.serving.opening import Settings
from mgvq_export.serving.stages import Arrays, DecoderStage, EncoderStage, QuantizerStage, ReaderStage, Stage

T = TypeVar("T")


class PythonModel:
    """One instance of a model. Triton calls :meth:`initialize` once, :meth:`execute` with the requests of a batch, :meth:`finalize` at the end.

    Attributes:
        inputs: names of the inputs, in the order of ``config.pbtxt``; one that a request leaves out is left out.
    """

    inputs: tuple[str, ...] = ()
    stage: Stage
    tokenizer: Tokenizer | None = None

    def make_stage(self, settings: Settings) -> Stage:
        """What the model computes."""
        raise NotImplementedError

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle and run the smallest input once, so that a model that is ready has worked. Raises :class:`MgvqError`."""
        self._triton = importlib.import_module("triton_python_backend_utils")  # exists in Triton's processes only
        check_arrays(self._triton)
        parameters = json.loads(args["model_config"])["parameters"]
        strings = {key: value["string_value"] for key, value in parameters.items()}
        settings = Settings.read(args["model_repository"], args["model_version"], strings)
        self.stage = self.make_stage(settings)
        self.stage.warm_up()

    def execute(self, requests: Sequence[Untyped]) -> list[Untyped]:
        """One response a request, in their order."""
        taken = [_attempt(partial(self._items, request)) for request in requests]
        results = iter(run_apart(self.stage.run, [item for items in taken if not isinstance(items, Exception) for item in items]))
        responses = []
        for items in taken:
            found = [items] if isinstance(items, Exception) else [next(results) for _ in items]
            responses.append(self._response(found))
        return responses

    def finalize(self) -> None:
        """Give the memory back."""
        if self.tokenizer is not None:
            self.tokenizer.close()

    def _items(self, request: Untyped) -> list[Untyped]:
        tensors = {name: self._triton.get_input_tensor_by_name(request, name) for name in self.inputs}
        return self.stage.items({name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None})

    def _response(self, found: Sequence[Arrays | Exception]) -> Untyped:
        for result in found:
            if isinstance(result, Exception):
                return self._triton.InferenceResponse(error=self._error(result))
        arrays = [result for result in found if not isinstance(result, Exception)]
        tensors = [self._triton.Tensor(name, np.stack([each[name] for each in arrays])) for name in arrays[0]]
        return self._triton.InferenceResponse(tensors)

    def _error(self, error: Exception) -> Untyped:
        kinds = self._triton.TritonError
        if isinstance(error, (InputError, TokensError)):
            return kinds(str(error), kinds.INVALID_ARG)
        if isinstance(error, MgvqError):
            return kinds(str(error), kinds.INTERNAL)
        traceback.print_exception(error)  # for the server's log; the client learns the kind only
        return kinds(f"internal error: {type(error).__name__}; the server's log has more", kinds.INTERNAL)


class ImageReader(PythonModel):
    """``mgvq_image_reader``."""

    inputs = ("file",)

    def make_stage(self, settings: Settings) -> Stage:
        """Files -> images."""
        return ReaderStage(settings.max_pixels)


class Encoder(PythonModel):
    """``mgvq_encoder``."""

    inputs = ("image",)

    def make_stage(self, settings: Settings) -> Stage:
        """Images -> latents."""
        self.tokenizer = settings.open()
        return EncoderStage(self.tokenizer, settings.max_pixels)


class Quantizer(PythonModel):
    """``mgvq_quantizer``."""

    inputs = ("latent",)

    def make_stage(self, settings: Settings) -> Stage:
        """Latents -> codes."""
        self.tokenizer = settings.open()
        return QuantizerStage(self.tokenizer)


class Decoder(PythonModel):
    """``mgvq_decoder``."""

    inputs = ("codes", "groups", "size")

    def make_stage(self, settings: Settings) -> Stage:
        """Codes -> images."""
        self.tokenizer = settings.open()
        return DecoderStage(self.tokenizer, settings.max_pixels)


def check_arrays(triton: Untyped) -> None:
    """Raise :class:`BackendError` when arrays change on their way through Triton.

    Its Python backend before release 24.11 gives wrong ones under NumPy 2, without an error.
    """
    for dtype in (np.uint8, np.uint16, np.float16, np.float32):
        sent = np.arange(24, dtype=dtype).reshape(2, 3, 4)
        found = triton.Tensor.from_dlpack("probe", triton.Tensor("probe", sent)).as_numpy()
        if found.dtype != sent.dtype or not np.array_equal(found, sent):
            raise BackendError(
                f"this Triton's Python backend gives wrong arrays with NumPy {np.__version__}: "
                "use Triton 24.11 or later, or in its Python: pip install 'numpy<2'"
            )


def run_apart(run: Callable[[Sequence[Untyped]], list[Arrays]], items: Sequence[Untyped]) -> list[Arrays | Exception]:
    """``run(items)``; when that fails, each item alone, so that one that fails takes no other with it."""
    if not items:
        return []
    found = _attempt(partial(run, items))
    if not isinstance(found, Exception):
        return list(found)
    if len(items) == 1:
        return [found]
    return [result for item in items for result in run_apart(run, [item])]


def _attempt(work: Callable[[], T]) -> T | Exception:
    try:
        return work()
    except Exception as error:
        return error
