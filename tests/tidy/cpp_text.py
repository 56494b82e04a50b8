"""Reading C++ as text: comments and strings taken out, functions found by their braces."""

import re

_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)
      | (?P<raw>R"(?P<mark>[^\s()\\]{0,16})\(.*?\)(?P=mark)")
      | (?P<string>"(?:\\.|[^"\\\n])*")
      | (?P<char>(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+')""",
    re.S | re.X,
)


def _blank(text):
    """As many lines and columns as before, nothing in them."""
    return re.sub(r"[^\n]", " ", text)


def code_only(text):
    """The text with comments and the insides of strings blanked out; positions stay."""

    def replace(match):
        if match.group("comment"):
            return _blank(match.group(0))
        whole = match.group(0)
        return whole[0] + _blank(whole[1:-1]) + whole[-1]

    return _TOKEN.sub(replace, text)


def comments_only(text):
    """The text with everything but comments blanked out; positions stay."""
    pieces = []
    end = 0
    for match in _TOKEN.finditer(text):
        pieces.append(_blank(text[end : match.start()]))
        pieces.append(match.group(0) if match.group("comment") else _blank(match.group(0)))
        end = match.end()
    pieces.append(_blank(text[end:]))
    return "".join(pieces)


def strings(text):
    """(line, contents) of every string literal."""
    for match in _TOKEN.finditer(text):
        if match.group("string"):
            yield text.count("\n", 0, match.start()) + 1, match.group("string")[1:-1]


# What stands before a brace that does not open a function.
_NOT_A_FUNCTION = re.compile(
    r"^\s*(?:template\s*<.*>\s*)?(?:inline\s+|export\s+)?"
    r"(?:namespace|class|struct|union|enum|extern)\b",
    re.S,
)
_FUNCTION_NAME = re.compile(r"([~\w:<>]+|operator\s*\S+?)\s*\($")


def _function_name(head):
    """The name before the first parenthesis of a function's head; None if it is no function."""
    head = re.sub(r"^\s*#.*$", "", head, flags=re.M)
    if "(" not in head or _NOT_A_FUNCTION.match(head) or re.search(r"=\s*$", head):
        return None
    before = head[: head.index("(") + 1]
    if re.search(r"\b__attribute__\s*\($", before):
        return None
    match = _FUNCTION_NAME.search(before)
    if not match:
        return None
    if match.group(1) in ("TEST", "TEST_F", "TEST_P", "TYPED_TEST", "BENCHMARK_F"):
        return re.sub(r"\s+", "", head[head.index(match.group(1)) :])
    return match.group(1)


def functions(text):
    """(name, first line, number of lines) of every outermost function body, head included."""
    code = code_only(text)
    found = []
    scopes = []  # True where a function was opened
    head_start = 0
    for match in re.finditer(r"[{};]", code):
        kind, at = match.group(0), match.start()
        inside = any(scope is not None for scope in scopes)
        if kind == "{":
            head = code[head_start:at]
            name = None if inside else _function_name(head)
            first = head_start + len(head) - len(head.lstrip())
            scopes.append((name, first) if name else None)
        elif kind == "}" and scopes:
            opened = scopes.pop()
            if opened:
                first_line = code.count("\n", 0, opened[1]) + 1
                last_line = code.count("\n", 0, at) + 1
                found.append((opened[0], first_line, last_line - first_line + 1))
        head_start = match.end()
    return found
