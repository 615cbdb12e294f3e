"""Model folders in Hugging Face's format: files, headers, networks, who belongs to whom."""
