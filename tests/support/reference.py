"""The synthetic weights and images of the tests, and where the outputs of the original network on them are stored."""

from pathlib import Path

from mgvq_export.model.synthetic import synthetic_image, synthetic_network, synthetic_state_dict

__all__ = ["GOLDEN", "synthetic_image", "synthetic_network", "synthetic_state_dict"]

GOLDEN = Path(__file__).with_name("golden")
