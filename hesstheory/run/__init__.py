"""Where and how does it run?"""
