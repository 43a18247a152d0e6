"""3DSAM-adapter (Gong et al. 2023)."""
