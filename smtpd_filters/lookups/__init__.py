"""What policies ask: the DNS."""
