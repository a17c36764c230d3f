"""Recordings, trials, training, evaluation and export. Importing this package imports no torch."""

import quantformer as quantformer  # before any module here imports onnxruntime: it turns its telemetry off
