"""The package as it is written: model files, manifest, model card, software bill of materials, signature."""
