"""Reading scans and writing masks: NIfTI, pictures and DICOM, strictly. The device ships this room."""
