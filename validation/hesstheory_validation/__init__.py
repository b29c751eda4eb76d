"""The claims that are decided, a folder a subject."""
