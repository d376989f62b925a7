"""Live skin-strata labels and junction depths from reflectance confocal microscopy stacks."""

__version__ = "0.1.0"
