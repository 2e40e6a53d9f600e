"""A checkpoint's files: headers, tensors, hashes, and random weights in their place."""
