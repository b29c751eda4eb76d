"""Is one product enough for all layers?"""
