"""requant: retrain a language model every night and ship it as a 4-bit model."""

__version__ = "0.1.0"
