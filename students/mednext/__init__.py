"""MedNeXt as a student."""
