"""The format of a training run's folder, for whoever writes or shows runs; without torch."""
