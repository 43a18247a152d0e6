"""A package at work beside the patient: doors through which scans come, one spool on disk, one worker."""
