"""Clients for the services that policies ask: the DNS, and services over HTTP."""
