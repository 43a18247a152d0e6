"""MA-SAM (Chen et al. 2024)."""
