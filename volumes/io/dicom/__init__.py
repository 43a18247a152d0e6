"""DICOM: series as scans, one process for native decoders, and masks as DICOM-SEG."""
