"""Writers of ONNX and TFLite files."""
