#!/usr/bin/env python3
"""The tree's rules as a test: python3 tests/tidy/tidy_test.py [--root DIR] [--ratchet].

Prints one line per finding, "path:line: rule: what to do", and exits with 1 if there is any.
A line that must break a rule says so on the same line or on the one above:
`tidy-allow(rule): reason`.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import cpp_text
import tables


class Tree:
    """The files under version control or new, with their text; nothing that git ignores."""

    def __init__(self, root):
        self.root = Path(root)
        listed = subprocess.run(
            [
                "git",
                "-c",
                "safe.directory=*",
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ],
            cwd=self.root,
            capture_output=True,
        )
        if listed.returncode == 0:
            names = listed.stdout.decode().split("\0")
        else:  # an unpacked archive
            names = [str(p.relative_to(self.root)) for p in self.root.rglob("*")]
            names = [n for n in names if not n.startswith((".git/", "build/", "runs/"))]
        self.text = {}
        for name in sorted(set(names)):
            path = self.root / name
            if name and path.is_file() and path.suffix in tables.TEXT_SUFFIXES | {""}:
                try:
                    self.text[name] = path.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue

    def files(self, *suffixes, under=""):
        return [n for n in self.text if n.endswith(suffixes) and n.startswith(under)]

    def cpp(self, under=""):
        return self.files(".cpp", ".hpp", under=under)


class Findings:
    """Collects findings, leaving out those that the tree allows with a reason."""

    def __init__(self, tree):
        self.tree = tree
        self.lines = []

    def add(self, name, line, rule, what):
        around = self.tree.text.get(name, "").split("\n")[max(0, line - 2) : line]
        if any(re.search(rf"tidy-allow\({rule}\): \S", text) for text in around):
            return
        self.lines.append(f"{name}:{line}: {rule}: {what}")


def line_of(text, position):
    return text.count("\n", 0, position) + 1


def is_test(name):
    return name.startswith("tests/") or name.endswith(("_test.cpp", "_test.py"))


# ---- edges -------------------------------------------------------------------------------------


def read_edges(tree):
    edges = {}
    for line in tree.text.get("cmake/edges.txt", "").split("\n"):
        match = re.match(r"([a-z]+):\s*(.*)$", line)
        if match:
            edges[match.group(1)] = match.group(2).split()
    return edges


def module_of(name):
    """The module that a path of ours belongs to, or None."""
    parts = PurePosixPath(name).parts
    if (
        len(parts) > 2
        and parts[0] in ("runtime", "transports")
        and parts[1] not in ("include", "bindings")
    ):
        return parts[1]
    return parts[0] if len(parts) > 1 and parts[0] in ("launcher", "perf") else None


def module_of_include(path, edges):
    parts = PurePosixPath(path).parts
    if parts[0] == "transports" and len(parts) > 2:
        return parts[1]
    return parts[0] if len(parts) > 1 and parts[0] in edges else None


def check_edges(tree, out):
    edges = read_edges(tree)
    table = "cmake/edges.txt"
    for module, uses in edges.items():
        for used in uses:
            if used not in edges:
                out.add(table, 1, "edges", f"{module} uses {used}, which has no line of its own")
    check_no_cycle(edges, out)
    modules = {module_of(n) for n in tree.files("CMakeLists.txt")} - {None}
    for module in sorted(modules - set(edges)):
        out.add(table, 1, "edges", f"module {module} is missing: say what it may use")
    for name in tree.cpp():
        check_includes(tree, name, edges, out)
    for name in tree.files("CMakeLists.txt"):
        check_links(tree, name, edges, out)


def check_no_cycle(edges, out):
    done = set()
    while True:
        ready = [
            m
            for m in edges
            if m not in done and all(u in done or u not in edges for u in edges[m])
        ]
        if not ready:
            break
        done.update(ready)
    if set(edges) - done:
        out.add(
            "cmake/edges.txt",
            1,
            "edges",
            "these use each other: " + " ".join(sorted(set(edges) - done)),
        )


def check_includes(tree, name, edges, out):
    module = module_of(name)
    for match in re.finditer(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', tree.text[name], re.M):
        line, path = line_of(tree.text[name], match.start(2)), match.group(2)
        if match.group(1) == '"':
            target = module_of_include(path, edges)
            if module and target and target != module and target not in edges.get(module, []):
                out.add(name, line, "edges", f"{module} may not include {path} (cmake/edges.txt)")
            if name.startswith("examples/") and target:
                out.add(name, line, "edges", "examples use the public API only: <regroup/...>")
            if name.startswith("runtime/include/"):
                out.add(
                    name,
                    line,
                    "edges",
                    "an installed header includes <regroup/...> and the standard library",
                )
        for prefix, folders in tables.VENDOR_HEADERS.items():
            if path.startswith(prefix) and not name.startswith(folders):
                out.add(
                    name,
                    line,
                    "edges",
                    f"<{path}> may be included below {', '.join(folders)} only",
                )


def check_links(tree, name, edges, out):
    module = module_of(name)
    if not module:
        return
    text = re.sub(r"#[^\n]*", "", tree.text[name])
    for match in re.finditer(r"\bregroup_([a-z]+)\b(?!\s*\()", text):
        used = match.group(1)
        if used in edges and used != module and used not in edges.get(module, []):
            out.add(
                name,
                line_of(text, match.start()),
                "edges",
                f"{module} may not link {used} (cmake/edges.txt)",
            )


# ---- pure modules ------------------------------------------------------------------------------


def check_pure(tree, out):
    for name in tree.cpp():
        if is_test(name) or not any(re.match(p, name) for p in tables.PURE_FILES):
            continue
        code = cpp_text.code_only(tree.text[name])
        code = re.sub(r"^\s*#\s*define[^\n]*", "", code, flags=re.M)
        for pattern, instead in tables.FORBIDDEN_IN_PURE.items():
            if "default" in pattern and re.match(tables.DEFAULT_CASE_ALLOWED, name):
                continue
            for match in re.finditer(pattern, code):
                out.add(
                    name,
                    line_of(code, match.start()),
                    "pure",
                    f"'{match.group(0).strip()}': {instead}",
                )


# ---- sizes -------------------------------------------------------------------------------------


def read_ratchet(tree):
    """Functions that were over the limit when the limit came: they may shrink, never grow."""
    limits = {}
    for line in tree.text.get("tests/tidy/long_functions.txt", "").split("\n"):
        if line and not line.startswith("#"):
            path, function, lines = line.rsplit(" ", 2)
            limits[(path, function)] = int(lines)
    return limits


def long_functions(tree):
    for name in tree.cpp():
        for function, first, lines in cpp_text.functions(tree.text[name]):
            if lines > tables.FUNCTION_LINES_MAX:
                yield name, function, first, lines


def check_sizes(tree, out):
    ratchet = read_ratchet(tree)
    for name, function, first, lines in long_functions(tree):
        limit = ratchet.pop((name, function), tables.FUNCTION_LINES_MAX)
        if lines > limit:
            out.add(
                name, first, "function-size", f"{function} has {lines} lines, {limit} are allowed"
            )
    for name, function in ratchet:
        out.add(
            "tests/tidy/long_functions.txt",
            1,
            "function-size",
            f"{name} {function} is short now: drop its line",
        )
    for name, text in tree.text.items():
        if not name.endswith(tables.CODE_SUFFIXES) and name not in ("dev", ".ci/run"):
            continue
        lines = text.split("\n")
        if len(lines) - 1 > tables.FILE_LINES_MAX and not name.endswith(tables.DATA_SUFFIXES):
            out.add(
                name,
                1,
                "file-size",
                f"{len(lines) - 1} lines, {tables.FILE_LINES_MAX} are allowed: split it",
            )
        for number, line in enumerate(lines, 1):
            if len(line) > tables.COLUMNS_MAX and "https://" not in line:
                out.add(
                    name,
                    number,
                    "columns",
                    f"{len(line)} columns, {tables.COLUMNS_MAX} are allowed",
                )
            if line != line.rstrip():
                out.add(name, number, "columns", "white space at the end of the line")


# ---- words -------------------------------------------------------------------------------------


def check_sleeps(tree, out):
    for name in tree.files(".cpp", ".hpp", ".py", ".sh"):
        if not is_test(name) or name.startswith("tests/tidy/"):
            continue
        text = tree.text[name]
        code = cpp_text.code_only(text) if name.endswith(("pp",)) else re.sub(r"#[^\n]*", "", text)
        for match in re.finditer(tables.SLEEPS, code, re.M):
            out.add(
                name,
                line_of(code, match.start()),
                "sleep",
                "wait for a signal of what you wait for, not for time",
            )


def check_leftovers(tree, out):
    for name, text in tree.text.items():
        if name.startswith("tests/tidy/") or name == "LICENSE":
            continue
        for pattern, what in tables.LEFTOVERS.items():
            for match in re.finditer(pattern, text):
                out.add(
                    name, line_of(text, match.start()), "leftover", f"'{match.group(0)}': {what}"
                )


def check_glossary(tree, out):
    for name, text in tree.text.items():
        if name.startswith("tests/tidy/") or not name.endswith(
            (".md", ".cpp", ".hpp", ".fbs", ".py")
        ):
            continue
        if name.endswith((".cpp", ".hpp", ".fbs")):
            prose = cpp_text.comments_only(text)
        else:
            prose = re.sub(r"`[^`\n]*`", lambda m: " " * len(m.group(0)), text)
        for pattern in tables.SYNONYMS_ALLOWED:
            prose = re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m.group(0)), prose, flags=re.I)
        for word, instead in tables.SYNONYMS.items():
            for match in re.finditer(rf"\b{word}s?\b", prose, re.I):
                out.add(
                    name,
                    line_of(prose, match.start()),
                    "glossary",
                    f"'{match.group(0)}': say {instead}",
                )


# ---- completeness ------------------------------------------------------------------------------


def listed_sources(tree):
    """Patterns of the source files that CMake names; a variable in a name matches anything."""
    patterns = []
    for name in tree.files("CMakeLists.txt", ".cmake"):
        folder = str(PurePosixPath(name).parent)
        for token in re.findall(r"[\w./${}-]+\.(?:cpp|c|fbs)\b", tree.text[name]):
            token = re.sub(r"\$\{(?:PROJECT|CMAKE)_SOURCE_DIR\}", "", token)
            relative = token.lstrip("/") if token.startswith("/") else os.path.join(folder, token)
            relative = os.path.normpath(relative.replace("${CMAKE_CURRENT_SOURCE_DIR}/", ""))
            patterns.append(
                re.compile(re.sub(r"\\\$\\\{\w+\\\}", "[^/]+", re.escape(relative)) + "$")
            )
    return patterns


def check_dead_files(tree, out):
    patterns = listed_sources(tree)
    for name in tree.files(".cpp", ".fbs"):
        if name.startswith("tests/tidy/") or any(p.match(name) for p in patterns):
            continue
        out.add(name, 1, "dead-file", "no CMakeLists.txt names it")
    included = set()
    for name in tree.cpp():
        included |= {
            PurePosixPath(p).name
            for p in re.findall(r'#\s*include\s*[<"]([^>"]+)[>"]', tree.text[name])
        }
    for name in tree.files(".hpp"):
        if PurePosixPath(name).name not in included and not name.startswith("runtime/include/"):
            out.add(name, 1, "dead-file", "nobody includes it")


def check_documented(tree, out):
    for name in tree.files(".hpp", under="runtime/include/"):
        text = tree.text[name]
        head = re.match(r"(?:///?[^\n]*\n)+", text)
        file_says = bool(head and re.search(r"Thread", head.group(0)))
        for match in re.finditer(
            r"((?:^///[^\n]*\n)*)^(?:template[^\n]*\n)?class\s[^;{]*\{", text, re.M
        ):
            if not file_says and "Thread" not in match.group(1):
                out.add(
                    name,
                    line_of(text, match.end()),
                    "threads",
                    "a public class says from which threads it is used",
                )
    errors = tree.text.get("runtime/include/regroup/status.hpp", "")
    body = re.search(r"enum class Code[^{]*\{(.*?)\n\};", errors, re.S)
    for match in re.finditer(r"^\s*(\w+),?(.*)$", body.group(1) if body else "", re.M):
        if "///<" not in match.group(2):
            line = line_of(errors, body.start(1) + match.start(1))
            out.add(
                "runtime/include/regroup/status.hpp",
                line,
                "codes",
                f"{match.group(1)} says when it is returned",
            )


def check_environment(tree, out):
    documented = tree.text.get("README.md", "") + tree.text.get("docs/environment.md", "")
    known = set(re.findall(r"\bREGROUP_[A-Z0-9_]+", documented))
    seen = set()
    for name in tree.cpp():
        if is_test(name):
            continue
        for line, text in cpp_text.strings(tree.text[name]):
            for variable in re.findall(r"\bREGROUP_[A-Z0-9_]*[A-Z0-9]\b", text):
                if variable not in known | seen:
                    seen.add(variable)
                    out.add(
                        name, line, "environment", f"{variable} is missing in docs/environment.md"
                    )


def check_error_codes(tree, out):
    documented = set(re.findall(r"\bE-[A-Z]+-\d+\b", tree.text.get("docs/errors.md", "")))
    for name in tree.cpp():
        if is_test(name):
            continue
        for line, text in cpp_text.strings(tree.text[name]):
            for code in sorted(set(re.findall(r"\bE-[A-Z]+-\d+\b", text)) - documented):
                documented.add(code)
                out.add(name, line, "errors", f"{code} is missing in docs/errors.md")


def check_paths_in_docs(tree, out):
    """What a page points at exists; docs/design.md speaks of what is to come and is left out."""
    for name in tree.files(".md"):
        text = tree.text[name]
        folder = tree.root / PurePosixPath(name).parent
        for match in re.finditer(r"\]\((?!https?:|#)([^)#\s]+)", text):
            if not (folder / match.group(1)).exists():
                out.add(name, line_of(text, match.start()), "docs", f"no file {match.group(1)}")
        if name == "docs/design.md":
            continue
        for match in re.finditer(rf"`(?:\./)?((?:{tables.TOP_FOLDERS})/[\w./*-]+)`", text):
            if not any(tree.root.glob(match.group(1).rstrip("/"))):
                out.add(name, line_of(text, match.start()), "docs", f"no file {match.group(1)}")


RULES = [
    check_edges,
    check_pure,
    check_sizes,
    check_sleeps,
    check_leftovers,
    check_glossary,
    check_dead_files,
    check_documented,
    check_environment,
    check_error_codes,
    check_paths_in_docs,
]


def findings(root):
    tree = Tree(root)
    out = Findings(tree)
    for rule in RULES:
        rule(tree, out)
    return tree, sorted(out.lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", default=Path(__file__).resolve().parents[2])
    parser.add_argument(
        "--ratchet", action="store_true", help="print the lines for tests/tidy/long_functions.txt"
    )
    arguments = parser.parse_args()
    tree, lines = findings(arguments.root)
    if arguments.ratchet:
        for name, function, _, size in long_functions(tree):
            print(name, function, size)
        return 0
    if not tree.text:
        print(f"tidy: no files below {arguments.root}")
        return 1
    print("\n".join(lines))
    print(f"tidy: {len(tree.text)} files, {len(RULES)} rules, {len(lines)} findings")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
