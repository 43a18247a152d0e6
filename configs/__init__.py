"""Configs: one YAML file per dataset, the schema that says what they may hold, and their loader."""
