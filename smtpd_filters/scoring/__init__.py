"""Chains with a score, and with clients, users and recipients that bypass them."""
