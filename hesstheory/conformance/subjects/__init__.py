"""Subjects: estimators that are right, wrong, or of other libraries."""
