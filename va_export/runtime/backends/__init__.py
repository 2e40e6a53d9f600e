"""What runs a bundle's components: ONNX Runtime, TensorRT, PyTorch."""
