"""Reading Cython source without a Cython parser: comments and strings out, statements joined.

Cython is needed to build the project, not to test it, so the tests cannot borrow its parser. Nor need
they: what they look for are keywords, and a keyword outside strings and comments is never anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_COMMENT_OR_STRING = re.compile(
    r'''
    \#[^\n]*
    | """ (?: \\. | (?!""") . )* """
    | \'\'\' (?: \\. | (?!\'\'\') . )* \'\'\'
    | " (?: \\. | [^"\\\n] )* "
    | ' (?: \\. | [^'\\\n] )* '
    ''',
    re.VERBOSE | re.DOTALL,
)
_NOT_NEWLINE = re.compile(r"[^\n]")
_C_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


def blank(code: str, *, strings: bool = True) -> str:
    """`code` with its comments, and unless told otherwise its strings, replaced by spaces.

    Lines and columns stay where they were. The quotes of a string stay too, so that an expression
    remains one.
    """

    def spaces(match: re.Match[str]) -> str:
        text = match[0]
        if text.startswith("#"):
            return " " * len(text)
        if not strings:
            return text
        quotes = 3 if len(text) >= 6 and text[:3] in ('"""', "'''") else 1
        return text[:quotes] + _NOT_NEWLINE.sub(" ", text[quotes:-quotes]) + text[-quotes:]

    return _COMMENT_OR_STRING.sub(spaces, code)


def statements(code: str) -> Iterator[tuple[int, str]]:
    """The logical lines of `code` and the number of the line each begins on.

    Continued lines, by a backslash or an open bracket, are joined; what `blank` removes is gone.
    """
    begun, depth, text = 0, 0, ""
    for number, line in enumerate(blank(code).split("\n"), start=1):
        if not text:
            begun = number
        depth += sum(line.count(c) for c in "([{") - sum(line.count(c) for c in ")]}")
        if line.endswith("\\"):
            text += line[:-1] + " "
        elif depth > 0:
            text += line + " "
        else:
            if (text + line).strip():
                yield begun, text + line
            text, depth = "", 0
    if text.strip():
        yield begun, text


def extern_blocks(code: str) -> Iterator[tuple[int, str, str]]:
    """Each ``cdef extern from`` block: line number, header named ("*" for none), what it declares.

    Strings stay, for they rename functions and carry C text; comments go, those in C included.
    """
    lines = blank(code, strings=False).split("\n")
    for at, line in enumerate(lines):
        head = re.match(r'(\s*)cdef\s+extern\s+from\s+(?:\*|["\']([^"\']+)["\'])', line)
        if head is None:
            continue
        body = []
        for following in lines[at + 1 :]:
            if following.strip() and len(following) - len(following.lstrip()) <= len(head[1]):
                break
            body.append(following)
        yield at + 1, head[2] or "*", _C_COMMENT.sub(" ", "\n".join(body))
