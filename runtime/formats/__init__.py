"""Readers of ONNX and TFLite files."""
