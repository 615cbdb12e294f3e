"""What several folders of tests need: a small chain, adapters, stages of one word, commands."""
