"""Image data for training: folders of image files and the procedurally rendered shapes."""
