"""Images by the ten thousand, in process or through the service: planned, made, kept, resumed. See docs/sampling.md."""
