"""The addresses in the From fields of a message, by all readings of lenient programs.

Start with `from_field`; `mailboxes` reads any field of addresses, for filters. `encoded_words` and
`display_order` find further readings of a text, `addresses_in_text` the addresses in one;
`candidate` is an address as it is judged.
"""
