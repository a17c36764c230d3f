"""QuantFormer: the model, its signal processing and its bundle on disk.

Importing this package imports neither torch nor a socket; the network's own modules
(`layers`, `patches`, `quantizer`, `autoencoder`, `forecaster`, `tokens`, `losses`) are the only ones that need torch.
"""

import os

# onnxruntime's official builds upload facts about the machine and the model from a thread of the process that runs it. A
# laboratory's recordings are nobody else's business and the real-time process runs alone. It reads this variable when it
# is first imported; set ORT_DISABLE_TELEMETRY=0 yourself to let it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
