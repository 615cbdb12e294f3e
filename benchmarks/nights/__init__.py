"""The proof of incremental nights: arms side by side on real text (`make nights`)."""
