"""Supervised fine-tuning, resumable and seeded; the demo's base from nothing."""
