"""The demo model: a small MGVQ that is trained for real and ships with the package.

``tools/train_demo.py`` trained it on photographs that scikit-image, scikit-learn and matplotlib ship. This module names
the photos it saw and those it never saw, so that figures are taken on the latter. It does not import torch.
"""

from pathlib import Path

from mgvq_export.core.spec import ModelSpec

#: Eight groups of four channels and 2048 codes each: the quantizer of mgvq-f8c32-g8 in front of a network 1/200 its size.
DEMO_SPEC = ModelSpec(
    name="demo",
    widths=(16, 32, 64, 128),
    encoder_depths=(0, 1, 1, 1),
    decoder_depths=(0, 1, 2, 1),
    blocks=("res", "res", "res", "evit"),
    groups=8,
    codebook_size=8 * 2048,
    latent_channels=32,
)

#: The weights, with the spec as JSON in the file's metadata.
DEMO_WEIGHTS = Path(__file__).with_name("demo.safetensors")

#: Metadata key of a safetensors checkpoint under which the spec stands as JSON.
SPEC_KEY = "mgvq_spec"

#: Photos the model was trained on, as "package: file in that package", with how often each is drawn.
TRAINING_PHOTOS: dict[str, float] = {
    "sklearn: datasets/images/china.jpg": 4,
    "sklearn: datasets/images/flower.jpg": 4,
    "skimage: data/motorcycle_left.png": 4,
    "skimage: data/motorcycle_right.png": 2,
    "skimage: data/rocket.jpg": 3,
    "matplotlib: mpl-data/sample_data/grace_hopper.jpg": 4,
    "skimage: data/camera.png": 2,
    "skimage: data/retina.jpg": 1,
    "skimage: data/hubble_deep_field.jpg": 1,
    "skimage: data/ihc.png": 1,
    "skimage: data/grass.png": 1,
    "skimage: data/gravel.png": 1,
    "skimage: data/brick.png": 1,
    "skimage: data/coins.png": 0.5,
    "skimage: data/moon.png": 0.5,
}

#: Photos kept out of training: the figures of the demo model are measured on these.
HELD_OUT_PHOTOS: tuple[str, ...] = ("skimage: data/astronaut.png", "skimage: data/chelsea.png", "skimage: data/coffee.png")


def photo_path(photo: str) -> Path:
    """Path of ``"package: file"`` inside the installed package, without importing it.

    Raises ModuleNotFoundError when the package is not installed, FileNotFoundError when it lacks the file.
    """
    from importlib.util import find_spec

    package, _, file = photo.partition(": ")
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed; it ships the photo {file}: pip install 'mgvq-export[test]'")
    path = Path(found.submodule_search_locations[0]) / file
    if not path.is_file():
        raise FileNotFoundError(f"the installed {package} has no file {file}")
    return path
