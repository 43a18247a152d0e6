"""The precisions a student can be deployed in, and what each costs."""

from enum import StrEnum


class Precision(StrEnum):
    """How weights are stored and what computes with them. Everything not named is computed in float32."""

    FP32 = "fp32"  # nothing is lost
    FP16 = "fp16"  # half the file. Only storage: on the CPU the weights are widened again, so it is not faster
    BF16 = "bf16"  # half the file; convolutions and products in bfloat16 (8 bits), only on CPUs that have it
    INT8 = "int8"  # a quarter of the file; convolutions and matrix products in int8, faster where the CPU has VNNI
