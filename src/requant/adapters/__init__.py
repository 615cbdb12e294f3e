"""peft adapter folders, read without peft."""
