"""The training methods; a method's file, registry key, documentation page and test have the same name."""
