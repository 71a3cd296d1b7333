"""Presets: partial YAML files of the settings tree."""
