"""Recordings, trials, training, evaluation and export. Importing this package imports no torch."""
