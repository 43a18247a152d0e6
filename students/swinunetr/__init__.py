"""SwinUNETR as a student: MONAI's network, a faster window attention, and its form for inference."""
