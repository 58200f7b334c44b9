"""Train compact SqueezeNets, export them as int8 ONNX and TFLite, plan their SRAM, run and measure them."""
