"""Filters for OpenSMTPD's smtpd(8), and the framework they are written with."""
