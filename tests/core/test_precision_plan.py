"""Precision plans as data: what is written is read back, contradictions are one line each."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mgvq_export.core.budgets import Budgets
from mgvq_export.core.errors import InputError
from mgvq_export.core.precision_plan import MadeFor, NodePlan, PrecisionPlan, side_of
from mgvq_export.tests.support.checks import one_line

CONV, SUM = "decoder.stages.1.op_list.1.main.conv1.conv", "decoder.stages.1.op_list.1"


@pytest.fixture
def plan() -> PrecisionPlan:
    return PrecisionPlan(
        "int8-wide",
        "fp16",
        {
            CONV: NodePlan("int8", {0: 0.02}, (0.1, 0.2), reason="cheap"),
            SUM: NodePlan("int8", {0: 0.02, 1: 1.5}),
            "encoder.project_in.conv.conv": NodePlan("fp32", reason="overflows"),
        },
        MadeFor("demo", "c" * 64, "b" * 64),
        Budgets(min_psnr=38.0),
        measured={"psnr": 41.5},
        calibration={"images": [{"name": "a.png", "sha256": "a" * 64}]},
        tools={"onnx": "1.0"},
    )


def test_what_is_written_is_read_back(plan: PrecisionPlan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    assert PrecisionPlan.load(tmp_path / "plan.json") == plan
    assert (tmp_path / "plan.json").read_bytes() == plan.to_bytes()


SHORT: dict[str, Any] = {
    "format": "mgvq-precision-plan",
    "version": 1,
    "name": "mine",
    "base": "fp32",
    "nodes": {CONV: {"precision": "int8", "scales": {"0": 1}}},
}


def test_the_schema_takes_what_is_written_and_what_is_read(plan: PrecisionPlan) -> None:
    schema = json.loads((Path(__file__).parents[2] / "docs" / "precision-plan.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    check = Draft202012Validator(schema)
    for values in (json.loads(plan.to_bytes()), SHORT, SHORT | {"made_for": None, "budgets": None}):
        assert [error.message for error in check.iter_errors(values)] == []
        PrecisionPlan.from_dict(values)
    wrong = [
        {"version": 2},
        {"name": "fp32"},
        {"name": "A b"},
        {"base": "int8"},
        {"extra": 1},
        {"budgets": {"min_code_agreement": 1.5}},
        {"budgets": {"min_psnr": -1}},
        {"nodes": {CONV: {"precision": "int4"}}},
        {"nodes": {CONV: {"precision": "int8"}}},
        {"nodes": {CONV: {"precision": "int8", "scales": {"0": 0}}}},
        {"nodes": {CONV: {"precision": "int8", "scales": {"00": 1}}}},
        {"nodes": {CONV: {"precision": "fp16", "scales": {"0": 1}}}},
        {"nodes": {CONV: {"precision": "fp16", "weight_scales": [1]}}},
        {"made_for": {"model": 3}},
    ]
    for values in wrong:
        assert not check.is_valid(SHORT | values), values
        with pytest.raises(InputError):
            PrecisionPlan.from_dict(SHORT | values)


def test_a_short_plan_written_by_hand(tmp_path: Path) -> None:
    entry = {"precision": "int8", "scales": {"0": 1}}
    values = {"format": "mgvq-precision-plan", "version": 1, "name": "mine", "base": "fp32", "nodes": {CONV: entry}}
    (tmp_path / "plan.json").write_text(json.dumps(values | {"budgets": None}))
    plan = PrecisionPlan.load(tmp_path / "plan.json")
    assert plan.nodes == {CONV: NodePlan("int8", {0: 1})}
    assert plan.made_for == MadeFor() and plan.budgets == Budgets()


def test_kinds_and_counts(plan: PrecisionPlan) -> None:
    assert plan.kind() == plan.kind("decoder") == "int8"
    assert plan.kind("encoder") == "fp16"  # an island makes it no lower
    assert plan.counts() == {"fp32": 1, "int8": 2}
    assert PrecisionPlan("x", "fp32", {CONV: NodePlan("fp8", {0: 1.0})}).kind() == "fp8"


def test_tightened_budgets_allow_that_much_less_loss() -> None:
    budgets = Budgets(min_code_agreement=0.98, min_psnr=40.0, max_psnr_drop=0.2)
    half = budgets.tightened(0.5)
    assert half.min_code_agreement == pytest.approx(0.99) and half.max_psnr_drop == pytest.approx(0.1)
    assert half.min_psnr == pytest.approx(43.01, abs=0.005)  # half the squared error
    assert budgets.tightened(0) == budgets and Budgets().tightened(0.5) == Budgets()
    assert (Budgets(max_psnr_drop=-0.2).tightened(0.5).max_psnr_drop or 0) < -0.2  # a gain was asked for: a larger one


@pytest.mark.parametrize(
    ("node", "side"),
    [
        ("encoder.stages.0.op_list.0", "encoder"),
        ("quant_conv", "encoder"),
        ("decoder.a/b", "decoder"),
        ("post_quant_conv", "decoder"),
    ],
)
def test_sides(node: str, side: str) -> None:
    assert side_of(node) == side


def test_made_for(plan: PrecisionPlan) -> None:
    plan.check_made_for(checkpoint_sha256="c" * 64, codebook_sha256="b" * 64)
    plan.check_made_for()
    for hashes in ({"checkpoint_sha256": "d" * 64}, {"codebook_sha256": "d" * 64}):
        with pytest.raises(InputError, match=r"another checkpoint \(demo\).*dddddddddddd") as caught:
            plan.check_made_for(**hashes)
        assert one_line(str(caught.value))
    PrecisionPlan("x", "fp16", {}).check_made_for(checkpoint_sha256="d" * 64)


def edited(plan: PrecisionPlan, *path: str, to: object) -> dict:
    values = plan.to_dict()
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return json.loads(json.dumps(values))


@pytest.mark.parametrize(
    ("path", "to", "match"),
    [
        (("format",), "mgvq-bundle", "no precision plan"),
        (("version",), 2, "version 2; this release reads version 1"),
        (("name",), "In T8", "name is 'In T8'"),
        (("name",), "../up", "name is '../up'"),
        (("name",), 8, "name is 8"),
        (("name",), "fp32", "cannot be called fp32"),
        (("name",), "engines", "cannot be called engines"),
        (("name",), "fp16", "a plan with int8 nodes cannot be called fp16"),
        (("base",), "int8", "base is 'int8'; choose fp32, fp16"),
        (("nodes",), [], r"nodes is a list; wanted an object"),
        (("nodes", f"{CONV}\nx"), {"precision": "fp32"}, r"a node is called '.*\\nx'"),
        (("nodes", f"{CONV}\x1b[2J"), {"precision": "int4"}, r"node .*\\x1b\[2J: precision is 'int4'"),
        (("nodes", CONV), "int8", "its entry is 'int8'; wanted an object"),
        (("nodes", CONV), {}, "it lacks precision"),
        (("nodes", CONV, "precision"), "int4", "precision is 'int4'; choose fp32, fp16, int8, fp8"),
        (("nodes", CONV, "precision"), "fp32", "fp32 takes no scales"),
        (("nodes", CONV, "scale"), 1, "unknown key 'scale'; wanted precision, scales"),
        (("nodes", CONV, "scales"), {}, "int8 needs the scale"),
        (("nodes", CONV, "scales"), [1], r"scales is a list; wanted an object"),
        (("nodes", CONV, "scales"), {"first": 1}, "scales has the key 'first'"),
        (("nodes", CONV, "scales"), {"0": 1, "00": 2}, "scales has the key '00'"),
        (("nodes", CONV, "scales"), {"0": 10**400}, "scale of input 0 is a whole number of 1,329 bits; wanted a number above 0"),
        (("nodes", CONV, "scales"), {"0": 0}, "scale of input 0 is 0; wanted a number above 0"),
        (("nodes", CONV, "scales"), {"0": float("nan")}, "scale of input 0 is nan"),
        (("nodes", CONV, "scales"), {"0": True}, "scale of input 0 is True"),
        (("nodes", CONV, "weight_scales"), [0.1, -1], "weight scale of channel 1 is -1"),
        (("nodes", CONV, "weight_scales"), 0.1, "weight_scales is 0.1; wanted a list"),
        (("made_for", "codebook_sha256"), 5, "made_for has codebook_sha256 = 5"),
        (("made_for", "model"), "a\nb", r"made_for has model = 'a\\nb'"),
        (("made_for", "hash"), "x", "unknown key 'hash'"),
        (("budgets", "min_psnr"), "38 dB", "budget min_psnr is '38 dB'"),
        (("budgets", "min_psnr"), float("nan"), "budget min_psnr is nan; wanted a finite number"),
        (("budgets", "min_psnr"), -1, "budget min_psnr is -1; wanted dB, 0 or more"),
        (("budgets", "max_psnr_drop"), float("-inf"), "budget max_psnr_drop is -inf; wanted a finite number"),
        (("budgets", "min_code_agreement"), 99, "a share, 0 to 1"),
        (("budgets", "psnr"), 1, "unknown key 'psnr'"),
        (("calibration",), "photos", "calibration is 'photos'; wanted an object"),
        (("speed",), 1, "unknown key 'speed'"),
    ],
)
def test_contradictions_are_one_line(plan: PrecisionPlan, path: tuple[str, ...], to: object, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        PrecisionPlan.from_dict(edited(plan, *path, to=to), "my.json")
    assert one_line(str(caught.value)) and str(caught.value).startswith("my.json")
    if path[0] == "nodes" and len(path) > 1:
        assert CONV in str(caught.value)


def test_a_plan_called_fp16_has_no_8_bit_node() -> None:
    assert PrecisionPlan("fp16", "fp16", {CONV: NodePlan("fp32")}).kind() == "fp16"
    with pytest.raises(InputError, match="a plan with fp8 nodes cannot be called fp16"):
        PrecisionPlan("fp16", "fp16", {CONV: NodePlan("fp8", {0: 1.0})})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "no valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "no precision plan"),
        (None, "no such file"),
        ('{"nodes": {"decoder.a": {}, "decoder.a": {}}}', "the key 'decoder.a' is given more than once"),
        ('{"base": "fp16", "base": "fp32"}', "the key 'base' is given more than once"),
        ('{"measured": {"q": NaN}}', "it holds the number NaN; wanted finite numbers"),
        ('{"measured": {"q": -Infinity}}', "it holds the number -Infinity"),
        ('{"measured": {"q": 1e999}}', "it holds the number 1e999"),
    ],
    ids=["cut", "deep", "list", "none", "node-twice", "key-twice", "nan", "infinity", "too-large"],
)
def test_files_that_are_no_plans(text: str | None, match: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=match) as caught:
        PrecisionPlan.load(path)
    assert one_line(str(caught.value)) and "plan.json" in str(caught.value)
