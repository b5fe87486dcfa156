"""Engines that authenticate messages, without I/O, and thin drivers that look up what they need."""
