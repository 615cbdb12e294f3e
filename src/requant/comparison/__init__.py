"""How far apart two models are, on the same text."""
