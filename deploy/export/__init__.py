"""Export: a student as the model of one engine, and its quantization. One file for each target."""
