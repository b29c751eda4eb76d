"""The measurements of a full-scale run: a file for each, and what they share."""
