"""Acceptance: every converted candidate is measured through the deployed pipeline, and the gate decides."""
