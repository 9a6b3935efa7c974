"""Files: written whole or not at all, arrays in .npz files, the commit of the checkout."""
