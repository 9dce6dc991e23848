"""Test checkpoints: whether every engine resumes from them, and what saving and loading cost."""
