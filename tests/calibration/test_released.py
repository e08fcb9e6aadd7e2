"""Released variants, full size, with synthetic weights: the float16 plan with the usual islands gives finite values only."""

import numpy as np
import pytest

from mgvq_export.calibration.effects import Effects, Graphs
from mgvq_export.core.precision_plan import PrecisionPlan
from mgvq_export.core.spec import VARIANTS
from mgvq_export.runtime.images import to_uint8
from mgvq_export.tests.support.reference import synthetic_image, synthetic_network


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mgvq-f8c32-g8", 256),
        ("mgvq-f16c32-g8", 256),
        ("mgvq-f32c32-g8-mix", 256),
        ("mgvq-f16c32-g8", 1024),
        pytest.param("mgvq-f8c32-g8", 1024, marks=pytest.mark.long),
        pytest.param("mgvq-f32c32-g8-mix", 1024, marks=pytest.mark.long),
    ],
)
def test_float16_stays_finite(name: str, size: int) -> None:
    image = to_uint8(synthetic_image(size, size))
    effect = Effects(Graphs(synthetic_network(VARIANTS[name])), [image], name).measure(PrecisionPlan("fp16", "fp16", {}))
    assert effect.finite
    assert effect.agreement > 0.9 and effect.psnr > 45 and np.isfinite(effect.drop)
