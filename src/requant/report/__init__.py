"""What a person reads of a night: pages made from records alone."""
