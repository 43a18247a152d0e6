"""The device side of a package: numpy, nibabel and one inference engine. No torch, nothing from the network."""
