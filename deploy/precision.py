"""The precisions a student can be deployed in, and what each costs."""

from enum import StrEnum

INFERENCE = "f32"  # the arithmetic of everything that is not int8, in every precision and on every CPU


class Precision(StrEnum):
    """How the weights are stored. Whatever is not int8 is computed in float32 on the CPU."""

    FP32 = "fp32"  # nothing is lost
    FP16 = "fp16"  # half the file. Only storage: on the CPU the weights are widened again, so it is not faster
    INT8 = "int8"  # a quarter of the file; convolutions and matrix products in int8, faster where the CPU has VNNI
