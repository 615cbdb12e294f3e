"""16-bit models to 4 and 8 bit, and what can be quantized at all."""
