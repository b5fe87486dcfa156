"""A tolerant reader of MIME: what the mail programs of recipients would show of a message.

`scanner` finds the parts of a message as it streams by, `description` what their fields say of
them, `archives` what is in archives. Where programs read a message differently, the reader takes
all readings and says so (`Content.oddities`). The public interface for filters is
`smtpd_filters.parts`.

Invariants
----------
*Bounded*: depth, parts, names, header blocks, members of archives and unpacked bytes have limits
(`limits`), and reaching one of them is an oddity.
*In steps*: no call takes longer than some milliseconds for each 4 KiB that it is given.
*Total*: no input raises an exception; those of the storage pass.
"""
