"""samkd: distil SAM-adapter teachers into small students and package them for the machine beside the patient."""

__version__ = "0.1.0"
