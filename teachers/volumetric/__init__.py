"""What the teachers on SAM's encoder lifted to 3-D share: 3DSAM-adapter and AutoSAM Adapter."""
