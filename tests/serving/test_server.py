"""A published repository on a real Triton server, over HTTP and gRPC: what it answers, what it refuses, and how it starts and ends."""

from __future__ import annotations

import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

import mgvq_export
from mgvq_export import Tokenizer, Tokens
from mgvq_export.benchmarks import serving
from mgvq_export.cli import main
from mgvq_export.core.errors import TokensError
from mgvq_export.runtime.image_files import read_image, write_image
from mgvq_export.serving.options import PublishOptions
from mgvq_export.serving.publish import publish
from mgvq_export.tests.support import triton_server

pytestmark = pytest.mark.triton

ROOT = Path(mgvq_export.__file__).parent
SIZES = ((1, 1), (7, 31), (16, 16), (64, 96), (100, 60), (131, 257))
TYPES = {"uint8": "UINT8", "uint16": "UINT16", "int32": "INT32", "int64": "INT64", "float32": "FP32"}


class Client:
    """The same calls over HTTP or gRPC."""

    def __init__(self, protocol: str, server: triton_server.Server):
        if protocol == "http":
            import tritonclient.http as module
        else:
            import tritonclient.grpc as module
        address = server.http if protocol == "http" else server.grpc
        self.module, self.client = module, module.InferenceServerClient(address)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()  # a server that ends waits for open connections

    def __call__(self, model: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs for inputs that have their batch dimension."""
        inputs = []
        for name, values in arrays.items():
            inputs.append(self.module.InferInput(name, list(values.shape), TYPES[values.dtype.name]))
            inputs[-1].set_data_from_numpy(values)
        answer = self.client.infer(model, inputs)
        response = answer.get_response()
        outputs = response["outputs"] if isinstance(response, dict) else response.outputs
        names = [output["name"] if isinstance(output, dict) else output.name for output in outputs]
        return {name: answer.as_numpy(name) for name in names}

    def refusal(self, model: str, **arrays: np.ndarray) -> str:
        """The error that the server answers with."""
        from tritonclient.utils import InferenceServerException

        with pytest.raises(InferenceServerException) as caught:
            self(model, **arrays)
        return str(caught.value)


@pytest.fixture(scope="module", params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: triton_server.Server) -> Iterator[Client]:
    with Client(request.param, server) as found:
        yield found


@pytest.fixture(scope="module")
def http(server: triton_server.Server) -> Iterator[Client]:
    with Client("http", server) as found:
        yield found


@pytest.fixture(scope="module")
def wanted(tiny_bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], SimpleNamespace]:
    """By size: an image, its file, and what the command line makes of it: tokens, and the image decoded from them."""
    folder = tmp_path_factory.mktemp("command-line")
    rng = np.random.default_rng(7)
    found = {}
    for height, width in SIZES:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        write_image(folder / f"{height}-{width}.png", image)
        found[height, width] = SimpleNamespace(image=image, file=folder / f"{height}-{width}.png")
    run = ["--precision", "fp32", "-o", str(folder)]
    names = [str(one.file) for one in found.values()]
    assert CliRunner().invoke(main, ["encode", str(tiny_bundle.path), *names, *run]).exit_code == 0
    tokens = [str(Path(name).with_suffix(".safetensors")) for name in names]
    decoded = [*run[:-1], str(folder / "decoded")]
    assert CliRunner().invoke(main, ["decode", str(tiny_bundle.path), *tokens, *decoded]).exit_code == 0
    for one in found.values():
        one.tokens = Tokens.load(one.file.with_suffix(".safetensors"))
        one.decoded = read_image(folder / "decoded" / one.file.name)
    return found


def wait_for(happened: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def size_of(one: SimpleNamespace) -> np.ndarray:
    return np.array([one.image.shape[:2]], np.int32)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_codes_and_images_are_those_of_the_command_line(client, wanted, size):
    one = wanted[size]
    assert np.array_equal(client("mgvq_encode", image=one.image[None])["codes"][0], one.tokens.codes)
    found = client("mgvq_encode_file", file=np.frombuffer(one.file.read_bytes(), np.uint8)[None])
    assert np.array_equal(found["codes"][0], one.tokens.codes) and found["size"].tolist() == [list(size)]
    assert np.array_equal(client("mgvq_decode", codes=one.tokens.codes[None], size=size_of(one))["image"][0], one.decoded)


def test_parts_alone_are_the_ensembles_in_pieces(client, wanted):
    one = wanted[100, 60]
    latent = client("mgvq_encoder", image=one.image[None])["latent"]
    assert latent.shape == (1, 16, 7, 4) and latent.dtype == np.float32
    assert np.array_equal(client("mgvq_quantizer", latent=latent)["codes"][0], one.tokens.codes)
    assert np.array_equal(client("mgvq_decoder", codes=one.tokens.codes[None], size=size_of(one))["image"][0], one.decoded)


def test_batches_give_the_same_codes(client, wanted):
    image = wanted[64, 96].image
    images = np.stack([image, image[::-1], image[:, ::-1], 255 - image])
    codes = client("mgvq_encode", image=images)["codes"]
    singly = [client("mgvq_encode", image=one[None])["codes"][0] for one in images]
    assert np.array_equal(codes, singly) and np.array_equal(codes[0], wanted[64, 96].tokens.codes)
    groups = np.array([[1], [4], [2], [4]], np.int32)
    decoded = client("mgvq_decode", codes=codes, groups=groups)["image"]
    for index in range(4):
        alone = client("mgvq_decode", codes=codes[index : index + 1], groups=groups[index : index + 1])["image"][0]
        assert np.array_equal(decoded[index], alone)
    assert "batch-size must be <= 4" in client.refusal("mgvq_encode", image=np.concatenate([images, images]))


def test_groups_and_size_may_be_left_out(client, wanted, tiny_bundle):
    one = wanted[100, 60]
    with Tokenizer.open(tiny_bundle, precision="fp32") as tokenizer:
        coarse = tokenizer.decode(one.tokens, groups=2)
    found = client("mgvq_decode", codes=one.tokens.codes[None], groups=np.array([[2]], np.int32), size=size_of(one))
    assert np.array_equal(found["image"][0], coarse)
    whole = client("mgvq_decode", codes=one.tokens.codes[None])["image"][0]
    assert whole.shape == (112, 64, 3) and np.array_equal(whole[:100, :60], one.decoded)


def test_many_clients_at_once(server, wanted):
    """32, of several sizes, each with a connection of its own: the batches that form mix them."""
    jobs = [wanted[SIZES[index % len(SIZES)]] for index in range(64)]

    def work(one: SimpleNamespace) -> bool:
        with Client("http", server) as client:
            codes = client("mgvq_encode", image=one.image[None])["codes"]
            again = client("mgvq_decode", codes=codes, size=size_of(one))["image"]
        return np.array_equal(codes[0], one.tokens.codes) and np.array_equal(again[0], one.decoded)

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(work, jobs)) == [True] * len(jobs)


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it is 50000x50000."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = (50_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def refused() -> dict[str, tuple[str, dict[str, np.ndarray], str]]:
    """By name: model, inputs, and what the error says."""
    image = np.zeros((1, 32, 32, 3), np.uint8)
    codes = np.zeros((1, 4, 2, 2), np.uint16)
    latent = np.zeros((1, 16, 2, 2), np.float32)
    jpeg = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(jpeg, "JPEG")
    files = {"truncated": jpeg.getvalue()[:-600], "bomb": bomb(), "text": b"no image at all"}
    file = {name: np.frombuffer(data, np.uint8)[None] for name, data in files.items()}
    return {
        "gray": ("mgvq_encode", {"image": image[..., :1]}, "unexpected shape"),
        "no batch": ("mgvq_encode", {"image": image[0, :4]}, "unexpected shape"),
        "floats": ("mgvq_encode", {"image": image.astype(np.float32)}, "data-type"),
        "no pixels": ("mgvq_encode", {"image": image[:, :0]}, "no pixels"),
        "too large": ("mgvq_encode", {"image": np.zeros((1, 1, 1_000_001, 3), np.uint8)}, "at most 1000000"),
        "other name": ("mgvq_encode", {"picture": image}, "picture"),
        "nothing": ("mgvq_encode", {}, "expected 1 inputs but got 0"),
        "NaN": ("mgvq_quantizer", {"latent": np.full_like(latent, np.nan)}, "NaN or infinite"),
        "infinite": ("mgvq_quantizer", {"latent": np.full_like(latent, np.inf)}, "NaN or infinite"),
        "channels": ("mgvq_quantizer", {"latent": latent[:, :8]}, "unexpected shape"),
        "codes out of range": ("mgvq_decode", {"codes": codes + 60}, "has codes 0 to 59"),
        "groups of codes": ("mgvq_decode", {"codes": codes[:, :3]}, "unexpected shape"),
        "no codes": ("mgvq_decode", {"codes": codes[:, :, :0]}, "no values"),
        "groups 0": ("mgvq_decode", {"codes": codes, "groups": np.array([[0]], np.int32)}, "choose 1 to 4"),
        "groups 5": ("mgvq_decode", {"codes": codes, "groups": np.array([[5]], np.int32)}, "choose 1 to 4"),
        "size": ("mgvq_decode", {"codes": codes, "size": np.array([[64, 32]], np.int32)}, "needs 4x2"),
        "size 0": ("mgvq_decode", {"codes": codes, "size": np.array([[0, 32]], np.int32)}, "image height"),
        "truncated JPEG": ("mgvq_encode_file", {"file": file["truncated"]}, "damaged or cut short"),
        "bomb": ("mgvq_encode_file", {"file": file["bomb"]}, "the limit is 1"),
        "text": ("mgvq_encode_file", {"file": file["text"]}, "no image of a known format"),
        "empty file": ("mgvq_encode_file", {"file": np.zeros((1, 0), np.uint8)}, "the file is empty"),
    }


@pytest.mark.parametrize("name", refused())
def test_what_cannot_be_run_gets_an_error_and_the_server_lives(client, wanted, name):
    model, inputs, said = refused()[name]
    assert said in client.refusal(model, **inputs)
    one = wanted[16, 16]
    assert np.array_equal(client("mgvq_encode", image=one.image[None])["codes"][0], one.tokens.codes)


def test_a_shape_that_claims_more_than_was_sent(client, wanted):
    """Hundreds of gigabytes, with twelve bytes behind it. As JSON numbers the same claim ends this server: the page says so."""
    from tritonclient.utils import InferenceServerException

    value = client.module.InferInput("image", [1, 2, 2, 3], "UINT8")
    value.set_data_from_numpy(np.zeros((1, 2, 2, 3), np.uint8))
    value.set_shape([1, 300_000, 300_000, 3])
    with pytest.raises(InferenceServerException, match="unexpected total byte size|byte size"):
        client.client.infer("mgvq_encode", [value])
    one = wanted[16, 16]
    assert np.array_equal(client("mgvq_encode", image=one.image[None])["codes"][0], one.tokens.codes)


def test_a_bad_request_takes_no_other_with_it(server, wanted):
    """Good and bad ones at once: in one batch, where the bad one's error is found before it runs, or while it runs."""
    files = {name: case[1]["file"] for name, case in refused().items() if case[0] == "mgvq_encode_file"}
    good = np.frombuffer(wanted[64, 96].file.read_bytes(), np.uint8)[None]

    def work(file: np.ndarray) -> np.ndarray | str:
        with Client("http", server) as client:
            if file is not good:
                return client.refusal("mgvq_encode_file", file=file)
            return client("mgvq_encode_file", file=file)["codes"][0]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, [good, files["truncated JPEG"], good, files["bomb"], good, files["text"]] * 3))
    assert all(np.array_equal(codes, wanted[64, 96].tokens.codes) for codes in found[::2])
    assert all(isinstance(said, str) for said in found[1::2])


def test_errors_have_the_status_that_says_who_can_mend_them(server):
    def status(model: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
        request = urllib.request.Request(f"http://{server.http}/v2/models/{model}/infer", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, ""
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["error"]

    raw = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}
    code, said = status("mgvq_encode_file", b"no image at all", raw)
    assert code == 400 and "no image of a known format" in said
    code, said = status("mgvq_encode", b"{not JSON", {"Content-Type": "application/json"})
    assert code in (400, 500) and "parse" in said  # the server's own


def test_a_full_queue_is_a_clear_rejection(server, wanted):
    """More requests at once than may wait: some are answered, and rightly, the others are told why not."""
    from tritonclient.utils import InferenceServerException

    one = wanted[131, 257]

    def work(_: int) -> str:
        with Client("http", server) as client:
            try:
                codes = client("mgvq_encode", image=one.image[None])["codes"][0]
            except InferenceServerException as error:
                return str(error)
        return "right" if np.array_equal(codes, one.tokens.codes) else "wrong"

    with ThreadPoolExecutor(120) as pool:
        found = list(pool.map(work, range(240)))
    rejected = {said for said in found if said != "right"}
    assert "right" in found and len(rejected) == 1
    assert re.search("503.*Exceeds maximum queue size|Exceeds maximum queue size", rejected.pop())
    assert work(0) == "right"


def test_readiness_metrics_and_labels(server, http, wanted, tiny_bundle):
    assert server.get("v2/health/live")[0] == 200 and server.get("v2/health/ready")[0] == 200
    for model in ("mgvq_encode", "mgvq_encode_file", "mgvq_decode", "mgvq_encoder", "mgvq_quantizer", "mgvq_decoder"):
        assert server.get(f"v2/models/{model}/ready")[0] == 200
    http("mgvq_encode", image=wanted[16, 16].image[None])
    status, text = server.get("metrics", server.metrics)
    assert status == 200
    assert float(re.search(r'nv_inference_request_success\{model="mgvq_encode",version="1"\} (\d+)', text)[1]) > 0
    config = json.loads(server.get("v2/models/mgvq_encode/config")[1])
    made_of = {key: value["string_value"] for key, value in config["parameters"].items()}
    assert made_of["codebook_sha256"] == tiny_bundle.codebook_sha256 and made_of["precision"] == "fp32"


def test_unload_load_and_a_damaged_bundle(server, http, wanted, repository):
    one = wanted[16, 16]

    def control(what: str) -> tuple[int, str]:
        return server.post(f"v2/repository/models/{what}", "{}")

    assert control("mgvq_quantizer/unload")[0] == 200
    wait_for(lambda: server.get("v2/models/mgvq_quantizer/ready")[0] != 200)
    assert "mgvq_quantizer" in http.refusal("mgvq_quantizer", latent=np.zeros((1, 16, 1, 1), np.float32))
    assert control("mgvq_quantizer/load")[0] == control("mgvq_encode/load")[0] == 200
    assert np.array_equal(http("mgvq_encode", image=one.image[None])["codes"][0], one.tokens.codes)

    weights = repository / "mgvq_encoder/1/bundle/fp32/weights.bin"
    aside = weights.rename(weights.with_suffix(".aside"))
    shutil.copyfile(aside, weights)
    with weights.open("r+b") as file:
        file.write(b"damaged!")
    (repository / "mgvq_quantizer/1/model.py").touch()  # the server loads again only what has changed
    status, said = control("mgvq_quantizer/load")
    assert status != 200 and "has changed since it was written" in said
    aside.rename(weights)
    assert np.array_equal(http("mgvq_encode", image=one.image[None])["codes"][0], one.tokens.codes)


def test_example_client(server, wanted, tmp_path):
    one = wanted[100, 60]
    command = [sys.executable, str(ROOT / "examples/triton_client.py")]
    subprocess.run([*command, "encode", server.http, one.file, tmp_path / "one.safetensors"], check=True, cwd=tmp_path)
    assert Tokens.load(tmp_path / "one.safetensors") == one.tokens
    program = runpy.run_path(str(ROOT / "examples/triton_client.py"))["main"]
    program("decode", server.http, tmp_path / "one.safetensors", tmp_path / "one.png")
    assert np.array_equal(read_image(tmp_path / "one.png"), one.decoded)
    program("decode", server.http, tmp_path / "one.safetensors", tmp_path / "coarse.png", "1")
    assert read_image(tmp_path / "coarse.png").shape == one.image.shape
    other = Tokens(one.tokens.codes, one.tokens.image_size, "tiny", "0" * 64, 60, 16)
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(TokensError, match="decode them with the bundle that encoded them"):
        program("decode", server.http, tmp_path / "other.safetensors", tmp_path / "other.png")


def test_curl_line_of_the_page(server, wanted, tmp_path):
    one = wanted[100, 60]
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^curl .*$", page, re.MULTILINE)
    shutil.copy(one.file, tmp_path / "photo.jpg")
    subprocess.run(shlex.split(line.replace("127.0.0.1:8000", server.http)), check=True, cwd=tmp_path)
    answer = (tmp_path / "answer.bin").read_bytes()
    start, found = answer.index(b"}]}") + 3, {}
    for output in json.loads(answer[:start])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        dtype = {"UINT16": np.uint16, "INT32": np.int32}[output["datatype"]]
        found[output["name"]] = np.frombuffer(answer[start : start + size], dtype).reshape(output["shape"])
        start += size
    assert np.array_equal(found["codes"][0], one.tokens.codes) and found["size"].tolist() == [[100, 60]]


def test_the_benchmark_measures_this_server(server, tiny_bundle, monkeypatch):
    """Small: that it runs, compares codes and makes its table. Its figures are in docs/serving.md."""
    monkeypatch.setattr(serving, "SETTLED", 8)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(serving.CLIENTS)]
    with Tokenizer.open(tiny_bundle, precision="fp32") as tokenizer:
        compared = serving.measure_latency(tokenizer, server, images[0], 1)
        compared += serving.measure_throughput(tokenizer, server, images, 1)
        memory = serving.measure_memory(tokenizer, server, 16)
    assert len(compared) == 4 and all(one.direct > 0 and one.triton > 0 for one in compared)
    assert memory.wrong == 0 and memory.settled > 50 * 2**20
    table = serving.tables(compared, memory)
    assert table.count("\n| ") == len(compared)
    assert "16 small requests" in table and "0 wrong codes" in table


def test_numpy_2_is_refused_where_triton_garbles_its_arrays(repository, tmp_path):
    """The wheel's server is older than 24.11, and this environment has NumPy 2: codes would be wrong without an error."""
    triton_server.require_server()
    if int(np.__version__.split(".")[0]) < 2:
        pytest.skip("this environment has NumPy 1")
    options = ("--model-control-mode=explicit", "--load-model=mgvq_image_reader", "--exit-on-error=false")
    with triton_server.running(repository, tmp_path, options, environment=Path(sys.prefix), live=True) as server:
        wait_for(lambda: "use Triton 24.11 or later" in server.log)
        assert server.get("v2/models/mgvq_image_reader/ready")[0] != 200
    assert f"wrong arrays with NumPy {np.__version__}" in server.log
    assert "pip install 'numpy<2'" in server.log


def test_the_deployments_server_is_closed_and_ends_in_its_time(tiny_bundle, tmp_path):
    """With the options of compose.yaml: no model can be loaded or memory registered without the key, and SIGTERM ends it."""
    triton_server.require_server()
    publish(tiny_bundle, tmp_path / "models", PublishOptions(precision="fp32"))
    compose = yaml.safe_load((ROOT / "examples/triton/compose.yaml").read_text(encoding="utf-8"))
    command = compose["services"]["triton"]["command"]
    options = [re.sub(r"\$\{[^}]*\}", "secret", word) for word in command[1:] if not word.startswith("--model-repository")]
    with triton_server.running(tmp_path / "models", tmp_path / "server", options) as server:
        assert server.get("v2/models/mgvq_decode/ready")[0] == 200
        for path in ("v2/repository/models/mgvq_decode/load", "v2/repository/index", "v2/systemsharedmemory/region/x/register"):
            assert server.post(path, "{}")[0] == 403
        with Client("http", server) as client:
            assert client("mgvq_decode", codes=np.zeros((1, 4, 1, 1), np.uint16))["image"].shape == (1, 16, 16, 3)
        assert server.stop(seconds=30) == 0
