"""The demonstration: good and bad senders, a real smtpd, and a table of the results.

    python -m tests.demo [--server VERSION|ROOT] [--replay] [--width COLUMNS]

smtpd runs in namespaces of its own with the configuration `fixtures/demo/smtpd.conf`, which is one
for an operator, and a name server that knows `fixtures/demo/zone.json`. Only what a laboratory
can't have is replaced in it (`configuration.laboratory`). Where smtpd can't be run, the sessions
recorded there (`fixtures/demo/neighbours.session`) are replayed to the same filters, unless
SMTPD_FILTERS_E2E is "required" in the environment.

Exit status: 0 if each message went where it should, 1 if not, 2 for wrong arguments.
"""
