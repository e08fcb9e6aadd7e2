"""Planted float16 faults are found by measuring, repaired with few nodes, and the repair is verified."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mgvq_export.calibration.crops import Crops
from mgvq_export.calibration.effects import Effect, Effects, Graphs
from mgvq_export.calibration.fp16_fallback import find_fp16_fallback, node_sensitivity, smallest
from mgvq_export.calibration.ranges import collect
from mgvq_export.core.budgets import Budgets
from mgvq_export.core.errors import InputError
from mgvq_export.core.precision_plan import NodePlan, PrecisionPlan
from mgvq_export.export.graphs.plans import check_plan, plan_nodes
from mgvq_export.tests.support.checks import one_line

BUDGETS = Budgets(min_code_agreement=0.96, min_psnr=45)
ATTENTION = "encoder.stages.2.op_list.0.context_module.main"
POINT_CONV = "encoder.stages.2.op_list.0.local_module.main.point_conv"


def plant(network) -> None:
    """Keys 3000 times larger and values as much smaller: the same attention, but its sums exceed float16. And a convolution whose
    outputs float16 makes subnormal or zero, before the norm that scales them up again."""
    block = network.encoder.stages[2].op_list[0]
    attention, point = block.context_module.main, block.local_module.main.point_conv
    with torch.no_grad():
        qkv = attention.qkv.conv.weight.view(attention.heads, 3, 32, -1, 1, 1)
        qkv[:, 1] *= 3000
        qkv[:, 2] /= 3000
        point.conv.weight *= 1e-7
        point.norm.weight *= 1e-5**0.5 / 1e-7


def all_half(network) -> PrecisionPlan:
    return PrecisionPlan("fp16", "fp16", {name: NodePlan("fp16") for name in plan_nodes(network)})


@pytest.fixture
def crops(photos: tuple[Path, ...]) -> Crops:
    return Crops(photos, 3, 32)


def in_float32(plan: PrecisionPlan) -> dict[str, str]:
    return {name: node.reason for name, node in plan.nodes.items() if node.precision == "fp32"}


def test_an_attention_sum_that_overflows_and_a_norm_that_underflows(small_network, crops: Crops) -> None:
    plant(small_network)
    known = plan_nodes(small_network)
    ranges = collect(small_network, crops, "planted")
    effects = Effects(Graphs(small_network), list(crops.read()), "planted")
    start = all_half(small_network)
    assert not effects.measure(start).finite
    assert ranges.value(f"{ATTENTION}/k_sum").overflow or ranges.value(f"{ATTENTION}/product").overflow

    plan, effect = find_fp16_fallback(effects, ranges, known, start, BUDGETS, headroom=False)
    # Found
    found = in_float32(plan)
    assert any(name.startswith(f"{ATTENTION}/") for name in found)
    assert any(name.startswith(POINT_CONV) for name in found)
    assert all(name.startswith((ATTENTION, POINT_CONV)) for name in found), found
    assert all("alone, float16" in reason and "left in float16:" in reason for reason in found.values())
    # Repaired, and verified by someone who knows nothing of the search
    check_plan(plan, small_network)
    again = Effects(Graphs(small_network), list(crops.read()), "again").measure(plan)
    assert again == effect and again.finite and again.holds(BUDGETS)
    # With no node to spare
    for name in found:
        nodes = {**plan.nodes, name: NodePlan("fp16")}
        assert not effects.measure(PrecisionPlan("fp16", "fp16", nodes)).holds(BUDGETS), name


def test_the_usual_islands_do_not_repair_the_convolution(small_network, crops: Crops) -> None:
    plant(small_network)
    ranges = collect(small_network, crops, "planted")
    effects = Effects(Graphs(small_network), list(crops.read()), "planted")
    plan, _ = find_fp16_fallback(
        effects, ranges, plan_nodes(small_network), PrecisionPlan("fp16", "fp16", {}), BUDGETS, headroom=False
    )
    assert in_float32(plan) and all(name.startswith(POINT_CONV) for name in in_float32(plan))
    # Once nodes have to go, they go until the target is met, which leaves something for other images.
    target = BUDGETS.tightened(0.5)
    start = PrecisionPlan("fp16", "fp16", {})
    more, effect = find_fp16_fallback(effects, ranges, plan_nodes(small_network), start, BUDGETS, target=target, headroom=False)
    assert effect.holds(target) and len(in_float32(more)) >= len(in_float32(plan))


def test_values_near_the_limit_are_taken_whatever_their_effect(small_network, crops: Crops) -> None:
    conv1, conv2 = (f"decoder.stages.1.op_list.1.main.conv{n}.conv" for n in (1, 2))
    factor = 2e4 / collect(small_network, crops, "before").value(conv1).largest
    with torch.no_grad():
        block = small_network.decoder.stages[1].op_list[1].main
        block["conv1"].conv.weight *= factor
        block["conv1"].conv.bias *= factor
        block["conv2"].conv.weight /= factor
    ranges = collect(small_network, crops, "near")
    effects = Effects(Graphs(small_network), list(crops.read()), "near")
    known = plan_nodes(small_network)
    loose = Budgets(min_psnr=20)
    assert effects.measure(PrecisionPlan("fp16", "fp16", {})).holds(loose)
    plan, _ = find_fp16_fallback(effects, ranges, known, PrecisionPlan("fp16", "fp16", {}), loose)
    assert {conv1, conv2} <= set(in_float32(plan))  # the one that writes the values and the one that reads them
    assert "within a factor of 8" in in_float32(plan)[conv1]


def test_sensitivity_of_a_node_alone(small_network, crops: Crops) -> None:
    plant(small_network)
    sensitivity = node_sensitivity(small_network, list(crops.read()))
    assert sensitivity[f"{ATTENTION}/product"].error == np.inf
    assert sensitivity[f"{ATTENTION}/product"].largest > 65504
    convs = [found.error for name, found in sensitivity.items() if name.startswith(f"{POINT_CONV}.conv")]
    assert min(convs) > 0.01
    assert 1e-5 < sensitivity["decoder.project_in.main.conv"].error < 2e-3  # float16 rounds at 5e-4


def effect(agreement: float) -> Effect:
    return Effect(agreement, 60.0, 0.0, 0.0, 0.0)


def test_smallest_set() -> None:
    names = list("abcdefgh")

    def measured(kept) -> Effect:
        return effect(1.0 if {"c", "g"} <= set(kept) or {"a", "b", "h"} <= set(kept) else 0.5)

    found, without = smallest(names, measured, Budgets(min_code_agreement=0.9))
    assert found in (["c", "g"], ["a", "b", "h"])
    assert set(without) == set(found) and all(one.agreement == 0.5 for one in without.values())
    assert smallest(names, lambda kept: effect(1.0), Budgets(min_code_agreement=0.9)) == ([], {})
    assert smallest(names, lambda kept: effect(len(kept) / 8), Budgets(min_code_agreement=1.0))[0] == names


def test_a_budget_that_no_plan_meets(small_network, crops: Crops) -> None:
    ranges = collect(small_network, crops, "plain")
    effects = Effects(Graphs(small_network), list(crops.read()), "plain")
    with pytest.raises(
        InputError, match=r"no fp16 plan meets the budgets; with all nodes in float32, .* wanted at least 200"
    ) as error:
        find_fp16_fallback(effects, ranges, plan_nodes(small_network), PrecisionPlan("fp16", "fp16", {}), Budgets(min_psnr=200))
    assert one_line(str(error.value))
