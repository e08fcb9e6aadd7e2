"""LPIPS and the features of rFID, through the packages that define them; their weights are downloaded once, or copied there by the user.

LPIPS: ``lpips`` 0.1 with its VGG backbone (Zhang et al. 2018, arXiv 1801.03924). rFID: the Inception of ``clean-fid``
behind its resizing to 299x299 in float (Parmar et al. 2022, arXiv 2104.11222), which is what the released code calls. Both run
in PyTorch, on a GPU when PyTorch has one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError

import numpy as np

from mgvq_export.core.errors import BackendError

if TYPE_CHECKING:
    import torch

FEATURES = 2048  # of one image, float32

#: Packages that a metric needs besides those of the run itself.
PACKAGES = {"psnr": (), "ssim": ("skimage",), "lpips": ("torch", "torchvision", "lpips"), "rfid": ("torch", "cleanfid")}

_INCEPTION = "inception-2015-12-05.pt"


def missing_package(metric: str) -> str | None:
    """The first package that ``metric`` needs and that is not installed, or None."""
    return next((name for name in PACKAGES[metric] if importlib.util.find_spec(name) is None), None)


class Lpips:
    """Perceptual distance of two images, 0 for equal ones."""

    def __init__(self) -> None:
        """Raises :class:`BackendError` when the package does not load, or its weights are missing and cannot be downloaded."""
        with _loading("lpips", "its VGG weights (vgg16-397923af.pth)"):
            import lpips

            self.device = _device()
            self.network = lpips.LPIPS(net="vgg", verbose=False).to(self.device)

    def __call__(self, image: np.ndarray, reference: np.ndarray) -> float:
        """uint8 [H, W, 3] twice -> distance."""
        import torch

        with torch.inference_mode():
            return float(self.network(self._tensor(image), self._tensor(reference)))

    def _tensor(self, image: np.ndarray) -> torch.Tensor:
        import torch

        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))[None])
        return pixels.to(self.device, torch.float32) / 127.5 - 1


class InceptionFeatures:
    """The features whose distribution rFID compares."""

    def __init__(self) -> None:
        """Raises :class:`BackendError` when the package does not load, or its weights are missing and cannot be downloaded."""
        with _loading("rfid", f"its Inception weights ({_INCEPTION})"):
            from cleanfid.inception_torchscript import InceptionV3W
            from cleanfid.resize import build_resizer

            self.device = _device()
            self.resize: Callable[[np.ndarray], np.ndarray] = build_resizer("clean")
            folder = _inception_folder()
            self.network = InceptionV3W(str(folder), download=False, resize_inside=False).to(self.device).eval()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> float32 [2048]."""
        import torch

        pixels = torch.from_numpy(np.ascontiguousarray(self.resize(image).transpose(2, 0, 1))[None])
        with torch.inference_mode():
            return self.network(pixels.to(self.device))[0].float().cpu().numpy()


def weights_folder() -> Path:
    """Where weights are looked for: PyTorch's download cache, which ``TORCH_HOME`` sets."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _inception_folder() -> Path:
    # clean-fid itself keeps them in /tmp and leaves an incomplete file when its download fails.
    import torch
    from cleanfid.downloads_helper import inception_url

    folder = weights_folder()
    if not (folder / _INCEPTION).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(inception_url, str(folder / _INCEPTION), progress=False)
    return folder


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def _loading(metric: str, weights: str) -> Iterator[None]:
    """Turns errors while a network is loaded into one line with the remedy, and suppresses output."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        except ImportError as error:
            raise BackendError(f"{metric} needs {error.name or error}: pip install 'mgvq-export[eval]'") from error
        except (URLError, OSError) as error:
            raise BackendError(
                f"{metric} needs {weights}, which could not be downloaded ({getattr(error, 'reason', error)}); copy the file to {weights_folder()}"
            ) from error
        except RuntimeError as error:  # a torchvision for another PyTorch, or a file that is no network
            raise BackendError(f"{metric} does not load: {' '.join(str(error).split())[:200]}") from error
