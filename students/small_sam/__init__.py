"""MobileSAM and EfficientSAM as students."""
