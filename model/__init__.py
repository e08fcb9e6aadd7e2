"""The PyTorch MGVQ network, inference only, and checkpoint loading. Needs the ``export`` extra."""
