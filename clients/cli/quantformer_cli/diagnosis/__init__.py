"""quantformer doctor: will this machine hold the frame rate, and from light to pulse on a rig."""
