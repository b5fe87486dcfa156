"""What policies ask: the DNS, and services over HTTP."""
