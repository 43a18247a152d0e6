"""Medical SAM Adapter (Wu et al. 2025)."""
