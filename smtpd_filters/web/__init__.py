"""The operator's page: an HTTP service that shows what filters have decided.

`passwords` and `logins` know who may read it, `guard` refuses requests of anybody else, and
`charts` draws. Reading works without JavaScript.
"""
