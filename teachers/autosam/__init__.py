"""AutoSAM Adapter (Li et al. 2023)."""
