"""The real-time service: engine, gateway and their supervisor. Nothing in it imports torch."""
