"""SegResNet as a student."""
