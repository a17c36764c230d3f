"""quantformer bench: paced load on a real service, every stamp kept, and what the stamps say."""
