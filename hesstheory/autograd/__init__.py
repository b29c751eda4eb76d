"""What does PyTorch's graph say?"""
