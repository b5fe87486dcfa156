"""The user name in the argument of AUTH.

Nothing here keeps or shows the password.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error

#: The longest initial response that is decoded, in characters.
LONGEST = 12_288
_WHITE_SPACE = dict.fromkeys(map(ord, " \t\n\v\f\r"))


def user_of(argument: str) -> str | None:
    """Return the user in an initial response; None if there is none, or it is invalid.

    RFC 4616 section 2: the message of PLAIN is [authzid] NUL authcid NUL passwd. LOGIN has no
    specification; its initial response is the name alone. As for smtpd, a tab ends the mechanism if
    there is no blank, and white space anywhere in the response is skipped (b64_pton(3)).
    """
    mechanism, _, response = argument.partition(" " if " " in argument else "\t")
    response = response.translate(_WHITE_SPACE)
    if not response or len(response) > LONGEST:
        return None
    try:
        decoded = b64decode(response, validate=True)
    except (Error, ValueError):
        return None
    if mechanism.upper() == "LOGIN":
        name = decoded
    else:
        parts = decoded.split(b"\0")
        if len(parts) < 3:
            return None
        name = parts[1]
    return name.decode("utf-8", "surrogateescape") or None
