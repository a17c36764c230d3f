"""QuantFormer: the model, its signal processing and its bundle on disk.

Importing this package imports neither torch nor a socket; the network's own modules
(`layers`, `quantizer`, `autoencoder`, `forecaster`, `losses`) are the only ones that need torch.
"""

__version__ = "0.1.0"
