"""Compression in other people's training loops: Lightning, Hugging Face Trainer, Accelerate."""
