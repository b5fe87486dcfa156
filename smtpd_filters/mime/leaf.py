"""The content of a part: decoded as it streams by, recognised, and kept if it is an archive."""

from __future__ import annotations

import re
from binascii import Error, a2b_base64, a2b_qp, a2b_uu
from io import BytesIO

from .limits import HEAD, PARAMETERS, TEXT_LEAST
from .names import all_readings, cost, extension
from .signatures import ARCHIVES, BEHIND_DATA, ISO, ISO_AT, TEXTUAL, sniff

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .content import Content, Hash, Part, Storage

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_OTHERS = bytes(set(range(256)) - set(_ALPHABET))
BASE64, QUOTED, UU = "base64", "quoted-printable", "x-uuencode"
#: Other names of the encodings.
ENCODINGS = {
    BASE64: BASE64,
    QUOTED: QUOTED,
    "uuencode": UU,
    "x-uuencode": UU,
    "x-uue": UU,
    "uue": UU,
    "7bit": "",
    "8bit": "",
    "binary": "",
    "": "",
}
#: What a macro leaves in the bytes of a file: in OLE directories, in WordprocessingML and in MHTML.
_MACROS = (
    "_VBA_PROJECT".encode("utf-16-le"),
    b"vbaProject.bin",
    b"QWN0aXZlTWltZQ",
    b"w:binData",
)
_ENCRYPTED = ("EncryptedPackage".encode("utf-16-le"),)
#: Bytes that are hashed in a unit of work (`Content.work`): SHA-256 without instructions of its own
#: takes 0.3 GB/s.
_HASHED = 256
_MARKED = frozenset({"ole", "text", "mhtml", "html"})
_OVERLAP = 32
#: The beginning of a file within text; yEnc's line and BinHex's as well.
_BEGIN = re.compile(
    rb"(?:\A|(?<=\n))(?:begin(?:-base64)?[ \t]++[0-7]{3,4}[ \t]++([^\n]++)\n"
    rb"|=ybegin [^\n]*? name=([^\n]++)\n|\(This file must be converted with BinHex)"
)
_END = re.compile(rb"(?:\A|(?<=\n))(?:end|====|=yend[^\n]*+)[ \t]*+(?:\n|\Z)")
#: Bytes of a line that is still incomplete in encoded text: half of them of its beginning, and half
#: of its end.
_LINE = PARAMETERS * 2


class Decoder:
    """A decoder of one transfer encoding that accepts anything."""

    __slots__ = ("_rest", "encoding", "padded", "resumed")

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding
        self._rest = b""
        #: Whether base64 has ended with padding, and whether there was more behind it: some
        #: programs decode that, others don't.
        self.padded = self.resumed = False

    def decode(self, data: bytes) -> bytes:
        """Decode a piece of whole lines (base64: any piece)."""
        match self.encoding:
            case "base64":
                return self._base64(data)
            case "quoted-printable":
                return a2b_qp(data)
            case "x-uuencode":
                return b"".join(map(_uu_line, data.split(b"\n")))
            case _:
                return data

    def finish(self) -> bytes:
        """Return what is left at the end."""
        rest, self._rest = self._rest, b""
        return _quads(rest)

    def _base64(self, data: bytes) -> bytes:
        data = self._rest + data.translate(None, _OTHERS)
        self._rest = b""
        if b"=" in data:
            *ended, data = data.split(b"=")
            if any(ended[1:]) or data or self.padded:
                self.resumed = self.resumed or any((*ended, data)[1:]) or self.padded
            self.padded = True
            decoded = b"".join(map(_quads, ended))
        else:
            self.resumed = self.resumed or (self.padded and bool(data))
            decoded = b""
        cut = len(data) & ~3
        self._rest = data[cut:]
        return decoded + a2b_base64(data[:cut]) if cut else decoded


def _quads(letters: bytes) -> bytes:
    if len(letters) % 4 == 1:
        letters = letters[:-1]
    return a2b_base64(letters + b"=" * (-len(letters) % 4)) if letters else b""


def _uu_line(line: bytes) -> bytes:
    line = line.rstrip(b"\r")
    if not line or line.startswith((b"begin ", b"end")):
        return b""
    try:
        return a2b_uu(line)
    except Error:
        # Encoders count the last line wrongly, or leave blanks out.
        length = ((line[0] - 32 & 63) * 4 + 5) // 3
        try:
            return a2b_uu(line[: length or 1])
        except Error:
            return b""


class Leaf:
    """The content of one part, written in pieces of whole lines; `done` gets kept archives.

    `inner` gets the decoded content as well, if that is a message or has parts. Of a part that is
    `delimited`, the hash leaves out the line end before the delimiter (RFC 2046 section 5.1.1).
    """

    __slots__ = (
        "_at", "_child", "_content", "_decoder", "_delimited", "_done", "_head", "_held", "_inner",
        "_iso", "_keeps", "_line", "_seam", "_sniffed", "_soft", "_store", "part",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913  # options, given by name
        self,
        content: Content,
        part: Part,
        encoding: str,
        done: Callable[[Part, Storage], None],
        inner: Callable[[bytes], None] | None = None,
        *,
        delimited: bool = False,
    ) -> None:
        self._delimited = delimited and encoding in {"", QUOTED}
        #: Whether the encoded content read last ends in a soft line break, and a line end is held
        #: back from the hash.
        self._soft = self._held = False
        self._content = content
        self.part = part
        self._decoder = Decoder(encoding)
        self._done = done
        self._inner = inner
        self._head = b""
        self._seam = b""
        self._iso = b""
        self._line = b""
        self._at = 0
        self._sniffed = False
        #: Whether the content is a text that is kept.
        self._keeps = False
        self._store: Storage | None = None
        #: The file in this text that is being read.
        self._child: Leaf | None = None

    def write(self, data: bytes) -> None:
        """Add a piece of the encoded content: whole lines."""
        if data:
            self._soft = self._decoder.encoding == QUOTED and data.endswith(b"=\n")
            self._decoded(self._decoder.decode(data))

    def close(self) -> None:
        """End the content."""
        self._decoded(self._decoder.finish())
        if self._line:
            self._text(b"", last=True)
        self._end_child()
        if not self._sniffed:
            self._recognise()
        if self._decoder.resumed:
            self._content.odd("base64 continues behind its padding")
        if self._store is not None:
            self._done(self.part, self._store)
            self._store = None

    def discard(self) -> None:
        """Drop what was kept."""
        if self._child is not None:
            self._child.discard()
        if self._store is not None:
            self._store.discard()
            self._store = None

    def _decoded(self, data: bytes) -> None:
        if not data:
            return
        before, self._at = self._at, self._at + len(data)
        self.part.size = self._at
        if self.part.hash is not None:
            self._hash(self.part.hash, data)
        if not self._sniffed:
            self._head += data
            if len(self._head) >= HEAD:
                self._recognise()
        else:
            if self._store is not None:
                self._store.write(data)
            if self._keeps:
                self._content.keep_text(self.part, data)
        kind = self.part.kind
        if kind in _MARKED or not self._sniffed:
            self._look_for_macros(data)
        if self._at > ISO_AT and len(self._iso) < len(ISO):
            skip = max(ISO_AT - before, 0)
            self._iso += data[skip : skip + len(ISO) - len(self._iso)]
            if self._iso == ISO:
                self.part.kind = "iso"
                self.part.traits.add("unreadable")
        self._hand_on(data)

    def _hash(self, to: Hash, data: bytes) -> None:
        self._content.work += len(data) // _HASHED
        if self._held:
            to.update(b"\n")
        self._held = self._delimited and not self._soft and data.endswith(b"\n")
        to.update(data[:-1] if self._held else data)

    def _hand_on(self, data: bytes) -> None:
        """Look for parts in decoded content: files in text, and those of a message."""
        if self._inner is None:
            if self.part.is_text:
                self._text(data)
        elif not self.part.is_text:
            self._inner(data)
        else:
            # The order in which the two find parts must not depend on the pieces. To both only LF
            # ends a line.
            for line in BytesIO(data):
                self._inner(line)
                self._text(line)

    def _recognise(self) -> None:
        """Recognise the kind by the first bytes, and begin to keep an archive."""
        self._sniffed = True
        part = self.part
        kind = part.kind = sniff(self._head[:HEAD])
        if kind in ARCHIVES or any(extension(each) in BEHIND_DATA for each in part.names):
            self._store = self._content.storage()
            self._store.write(self._head)
        if part.is_text:
            part.head = self._head[: HEAD if self._content.text_left > 0 else TEXT_LEAST]
            self._content.text_left -= len(part.head)
        # What is read as a message has its texts in parts of its own.
        shown = part.is_text or (kind in TEXTUAL and self._inner is None)
        if self._content.keeps_texts and shown:
            self._keeps = True
            self._content.keep_text(part, self._head)
        self._head = b""

    def _look_for_macros(self, data: bytes) -> None:
        data = self._seam + data
        self._seam = data[-_OVERLAP:]
        traits = self.part.traits
        # In text that has no name the words are only mentioned.
        if self.part.attached and any(mark in data for mark in _MACROS):
            traits.add("macros")
        if any(mark in data for mark in _ENCRYPTED):
            traits.add("encrypted")

    # -- files within text ---------------------------------------------------------------

    def _text(self, data: bytes, *, last: bool = False) -> None:
        """Look for files in decoded text."""
        if self._line:
            data, self._line = self._line + data, b""
        if not last:
            cut = data.rfind(b"\n") + 1
            line = data[cut:]
            whole = len(line) <= _LINE
            self._line = line if whole else line[: _LINE // 2] + line[-_LINE // 2 :]
            data = data[:cut]
        at = 0
        while at < len(data):
            at = self._in_file(data, at) if self._child else self._in_text(data, at)

    def _in_text(self, data: bytes, at: int) -> int:
        # The pattern is slow where nothing of it occurs.
        likely = b"begin" in data or b"BinHex" in data
        match = _BEGIN.search(data, at) if likely else None
        if match is None:
            return len(data)
        part = self._content.add(self.part.depth + 1)
        if part is None:
            return len(data)
        raw = (match[1] or match[2] or b"").decode("utf-8", "surrogateescape").strip()
        part.names, more = all_readings([raw])
        self._content.work += cost(raw[-PARAMETERS:])
        if more:
            self._content.cut_off("too long a name of a part")
        part.outer = self.part
        part.disposition = "attachment"
        part.type = "application/octet-stream"
        encoding = BASE64 if match[0].startswith(b"begin-") else UU
        if not match[1]:
            encoding = ""
            part.kind = "data"
            part.traits.add("unreadable")
        self._child = Leaf(self._content, part, encoding, self._done)
        return match.end()

    def _in_file(self, data: bytes, at: int) -> int:
        assert self._child is not None  # noqa: S101  # the caller has looked
        likely = b"end" in data or b"====" in data
        match = _END.search(data, at) if likely else None
        end = match.start() if match else len(data)
        # Where one begins, the one before it had no end.
        begin = _BEGIN.search(data, at, end) if b"begin" in data else None
        self._child.write(data[at : begin.start() if begin else end])
        if begin is None and match is None:
            return len(data)
        self._end_child()
        return begin.start() if begin else match.end() if match else end

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None
