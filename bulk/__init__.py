"""Generation of many thousands of images, in process or through the service, resumable. See docs/sampling.md."""
