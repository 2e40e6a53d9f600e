"""From frames and a question to a model's inputs, on the host."""
