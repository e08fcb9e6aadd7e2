"""The models without a server: what a stage takes and gives, one error a request, the settings they read, and what they refuse at the start."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import mgvq_export
from mgvq_export import Tokenizer
from mgvq_export.core.errors import BackendError, BundleError, InputError, TokensError
from mgvq_export.runtime.tokenizer import Tokenizer as RuntimeTokenizer
from mgvq_export.serving import models
from mgvq_export.serving.opening import Settings
from mgvq_export.serving.stages import DecoderStage, EncoderStage, QuantizerStage, ReaderStage


class Tensor:
    """Triton's, of a Python backend that is sound or, as before 24.11 under NumPy 2, gives the first value everywhere."""

    sound = True

    def __init__(self, name, values):
        self.name, self.values = name, values

    @classmethod
    def from_dlpack(cls, name, tensor):
        return cls(name, tensor.values if cls.sound else np.full_like(tensor.values, tensor.values.flat[0]))

    def as_numpy(self):
        return self.values


class Broken(Tensor):
    sound = False


class TritonError(Exception):
    INVALID_ARG, INTERNAL = "invalid", "internal"

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


def response(tensors=(), error=None):
    return SimpleNamespace(tensors={tensor.name: tensor.values for tensor in tensors}, error=error)


TRITON = SimpleNamespace(
    Tensor=Tensor,
    TritonError=TritonError,
    InferenceResponse=response,
    get_input_tensor_by_name=lambda request, name: Tensor(name, request[name]) if name in request else None,
)


@pytest.fixture
def triton(monkeypatch):
    """The module that exists in Triton's processes only."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", TRITON)
    return TRITON


def arguments(repository, model, **changed):
    """What Triton gives a model at its start; ``changed``: parameters."""
    text = (repository / model / "config.pbtxt").read_text()
    words = [line.split('"') for line in text.splitlines() if line.startswith("parameters")]
    parameters = {word[1]: {"string_value": word[3]} for word in words}
    parameters |= {key: {"string_value": value} for key, value in changed.items()}
    config = json.dumps({"parameters": parameters})
    return {"model_config": config, "model_repository": str(repository / model), "model_version": "1"}


@pytest.fixture
def start(repository, triton):
    """(class, model) -> an instance that is ready; all are finalized at the end."""
    started = []

    def make(kind, model, **changed):
        found = kind()
        found.initialize(arguments(repository, model, **changed))
        started.append(found)
        return found

    yield make
    for model in started:
        model.finalize()


def test_requests_of_several_sizes_in_one_batch(start, tiny_bundle):
    encoder, quantizer = start(models.Encoder, "mgvq_encoder"), start(models.Quantizer, "mgvq_quantizer")
    decoder = start(models.Decoder, "mgvq_decoder")
    rng = np.random.default_rng(3)
    batches = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((1, 40, 24, 3), (2, 7, 31, 3), (1, 33, 17, 3))]
    latents = encoder.execute([{"image": images} for images in batches])
    assert [found.tensors["latent"].shape for found in latents] == [(1, 16, 3, 2), (2, 16, 1, 2), (1, 16, 3, 2)]
    codes = quantizer.execute([found.tensors for found in latents])
    requests = [{**found.tensors, "groups": np.full((len(found.tensors["codes"]), 1), 3, np.int32)} for found in codes]
    decoded = decoder.execute(requests)
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp32") as tokenizer:
        for images, found, again in zip(batches, codes, decoded, strict=True):
            assert found.tensors["codes"].dtype == np.uint16
            for image, one, pixels in zip(images, found.tensors["codes"], again.tensors["image"], strict=True):
                tokens = tokenizer.encode(image)
                assert np.array_equal(one, tokens.codes)
                height, width = image.shape[:2]
                assert np.array_equal(pixels[:height, :width], tokenizer.decode(tokens, groups=3))


def test_errors_have_a_code_and_take_no_other_request_with_them(start, capsys, monkeypatch):
    encoder = start(models.Encoder, "mgvq_encoder")
    good, empty = np.zeros((1, 16, 16, 3), np.uint8), np.zeros((1, 0, 16, 3), np.uint8)
    first, second, third = encoder.execute([{"image": good}, {"image": empty}, {"image": good}])
    assert first.error is None and third.error is None and first.tensors["latent"].shape == (1, 16, 1, 1)
    assert "no pixels" in str(second.error) and second.error.code == "invalid"

    def fail(images):
        if len(images) > 1 or images[0].any():
            raise failures[-1]
        return [np.zeros((16, 1, 1), np.float32)]

    failures: list[Exception] = []

    monkeypatch.setattr(encoder.stage.tokenizer.implementation.__class__, "latent_batch", lambda _, images: fail(images))
    for failure, code, said in (
        (BackendError("no memory is left for this image"), "internal", "no memory is left"),
        (InputError("cannot be tiled under the limit"), "invalid", "under the limit"),
        (RuntimeError("secret details"), "internal", "internal error: RuntimeError"),
    ):
        failures.append(failure)
        first, second = encoder.execute([{"image": good}, {"image": good + 1}])
        assert first.error is None and second.error.code == code and said in str(second.error)
    assert "secret details" in capsys.readouterr().err and "secret" not in str(second.error)
    assert encoder.execute([{"image": empty}])[0].error is not None


def test_stages_refuse_what_the_configuration_cannot(tiny_bundle):
    codes = np.zeros((1, 4, 2, 3), np.uint16)
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp32") as tokenizer:
        decoder = DecoderStage(tokenizer, max_pixels=32 * 48)
        decoder.items({"codes": codes})
        with pytest.raises(InputError, match="the image is 64x32, 2048 pixels; this server takes at most 1536"):
            decoder.items({"codes": np.zeros((1, 4, 2, 4), np.uint16)})
        for groups in (0, 5, -1):
            with pytest.raises(InputError, match="choose 1 to 4"):
                decoder.items({"codes": codes, "groups": np.array([[groups]], np.int32)})
        with pytest.raises(TokensError, match="0 to 59"):
            decoder.items({"codes": codes + 60})
        for size in ((33, 48), (16, 48), (-1, 48), (0, 0)):
            with pytest.raises(TokensError):
                decoder.items({"codes": codes, "size": np.array([size], np.int32)})
        for value in (np.nan, np.inf, -np.inf):
            with pytest.raises(InputError, match="NaN or infinite"):
                QuantizerStage(tokenizer).items({"latent": np.full((1, 16, 1, 1), value, np.float32)})
        with pytest.raises(InputError, match="the image is 9x8, 72 pixels"):
            EncoderStage(tokenizer, max_pixels=71).items({"image": np.zeros((1, 8, 9, 3), np.uint8)})
    with pytest.raises(InputError, match="the file is empty"):
        reader = ReaderStage(max_pixels=100)
        reader.run(reader.items({"file": np.zeros((1, 0), np.uint8)}))


def test_a_backend_without_single_graphs_quantizes_on_the_cpu(tiny_bundle, monkeypatch):
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp32") as tokenizer:
        image = np.random.default_rng(5).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        (latent,) = EncoderStage(tokenizer, 10**6).run([image])
        wanted = tokenizer.encode(image).codes
        whole = SimpleNamespace(graphs=None)
        monkeypatch.setattr(RuntimeTokenizer, "implementation", property(lambda _: whole))
        stage = QuantizerStage(tokenizer)
        monkeypatch.undo()
    assert np.array_equal(stage.run([latent["latent"]])[0]["codes"], wanted)


def test_arrays_that_change_on_their_way_are_refused(repository, triton, monkeypatch):
    monkeypatch.setattr(TRITON, "Tensor", Broken)
    with pytest.raises(BackendError, match="wrong arrays with NumPy .*: use Triton 24.11 or later, or .* pip install 'numpy<2'"):
        models.ImageReader().initialize(arguments(repository, "mgvq_image_reader"))


def test_a_model_of_another_release_is_refused(start):
    with pytest.raises(BundleError, match="was published by mgvq-export 9.9; .* publish the bundle again"):
        start(models.Decoder, "mgvq_decoder", format="2", mgvq_export="9.9")


def test_a_gpu_is_not_replaced_by_the_cpu(start):
    with pytest.raises(BackendError, match="published for a GPU and only .* runs here"):
        start(models.Decoder, "mgvq_decoder", backend="ort-cpu", device="gpu")


def test_settings_reach_the_tokenizer(start, repository, monkeypatch):
    seen = {}
    opened = Tokenizer.open.__func__

    def spy(cls, bundle, **options):
        seen.update(options)
        return opened(cls, bundle, **options)

    monkeypatch.setattr(RuntimeTokenizer, "open", classmethod(spy))
    decoder = start(models.Decoder, "mgvq_decoder", backend="ort-cpu", threads="1", memory_limit="64GiB", max_pixels="4096")
    assert (
        seen == {"backend": "ort-cpu", "precision": "fp32", "threads": 1, "memory_limit": "64GiB"}
        and decoder.stage.max_pixels == 4096
    )


def test_the_bundle_is_found_beside_the_model(tmp_path):
    parameters = {
        "format": "1",
        "precision": "fp32",
        "backend": "auto",
        "device": "cpu",
        "threads": "",
        "max_pixels": "1",
        "memory_limit": "",
    }
    settings = Settings.read(str(tmp_path / "mgvq_decoder"), "7", parameters)
    assert settings.bundle == tmp_path / "mgvq_encoder" / "7" / "bundle" and settings.threads is None


def test_a_server_without_the_package_says_what_to_install(repository):
    code = """
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.split('.')[0] == 'mgvq_export':
            raise ModuleNotFoundError("No module named 'mgvq_export'", name=name)
sys.meta_path.insert(0, Blocked())
exec(open(sys.argv[1]).read())
"""
    model = repository / "mgvq_decoder/1/model.py"
    found = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True)
    assert found.returncode and found.stderr.strip().splitlines()[-1].endswith(
        f"pip install 'mgvq-export=={mgvq_export.__version__}'"
    )
