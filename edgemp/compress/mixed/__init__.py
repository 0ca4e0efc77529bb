"""INT8 of ONNX networks without training: float activations stay where outputs need them."""
