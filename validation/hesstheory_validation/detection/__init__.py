"""What a count of false alarms says."""
