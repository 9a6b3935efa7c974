"""The format of a training run's folder, for programs that write or show runs; without torch."""
