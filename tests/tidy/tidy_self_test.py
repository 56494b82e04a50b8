#!/usr/bin/env python3
"""The tidy test finds what it is there to find: each case plants one violation in a small tree."""

import tempfile
import unittest
from pathlib import Path

import cpp_text
import tidy_test

EDGES = "base:\nmembership: base\nstate: base\nlauncher: base\n"
STATUS = "/// Threads: a value.\nenum class Code {\n  Ok,  ///< success\n};\n"


def findings_of(files):
    """The findings in a tree of these files; edges, codes and sources are in order already."""
    everything = {"cmake/edges.txt": EDGES, "runtime/include/regroup/status.hpp": STATUS, **files}
    with tempfile.TemporaryDirectory() as folder:
        sources = {}
        for name, text in everything.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            if name.endswith(".cpp"):
                sources.setdefault(path.parent, []).append(path.name)
        for parent, names in sources.items():
            if not (parent / "CMakeLists.txt").exists():
                (parent / "CMakeLists.txt").write_text(f"add_library(x {' '.join(names)})\n")
        return tidy_test.findings(folder)[1]


class Planted(unittest.TestCase):
    def expect(self, files, rule, part):
        lines = findings_of(files)
        self.assertEqual(len(lines), 1, lines)
        self.assertIn(f": {rule}: ", lines[0])
        self.assertIn(part, lines[0])

    def expect_clean(self, files):
        self.assertEqual(findings_of(files), [])

    def test_an_empty_tree_is_clean(self):
        self.expect_clean({})

    def test_an_include_against_the_edges(self):
        self.expect(
            {"runtime/base/a.cpp": '#include "membership/b.cpp"\n'}, "edges", "base may not"
        )

    def test_an_include_along_the_edges(self):
        self.expect_clean({"runtime/membership/a.cpp": '#include "base/status.hpp"\n'})

    def test_a_link_against_the_edges(self):
        files = {"runtime/base/CMakeLists.txt": "target_link_libraries(x regroup_state)\n"}
        self.expect(files, "edges", "base may not link state")

    def test_a_module_without_a_line(self):
        self.expect({"runtime/extra/CMakeLists.txt": "\n"}, "edges", "module extra is missing")

    def test_a_line_for_a_used_module_is_missing(self):
        self.expect({"cmake/edges.txt": EDGES + "engine: nothing\n"}, "edges", "uses nothing")

    def test_modules_that_use_each_other(self):
        self.expect({"cmake/edges.txt": "base: state\nstate: base\n"}, "edges", "base state")

    def test_a_vendor_header_in_a_second_folder(self):
        self.expect(
            {"runtime/base/a.cpp": "#include <flatbuffers/x.h>\n"}, "edges", "runtime/control/"
        )

    def test_an_example_that_looks_inside(self):
        self.expect({"examples/a.cpp": '#include "base/fd.hpp"\n'}, "edges", "public API")

    def test_a_clock_in_a_pure_module(self):
        for text in ["auto t = std::chrono::steady_clock::now();", "auto t = Clock::now();"]:
            self.expect({"runtime/membership/a.cpp": text + "\n"}, "pure", "argument")

    def test_other_impurities(self):
        for text in [
            "std::mutex m;",
            "getenv(name);",
            "std::mt19937_64 g;",
            "std::ifstream f;",
            "default: break;",
        ]:
            self.expect({"runtime/state/planner.cpp": text + "\n"}, "pure", "")

    def test_words_in_comments_are_no_impurity(self):
        self.expect_clean({"runtime/membership/a.cpp": '// std::mutex\nauto s = "getenv(";\n'})

    def test_a_defaulted_member_is_no_hidden_case(self):
        self.expect_clean({"runtime/membership/a.cpp": "struct A { A() = default; };\n"})

    def test_a_long_function(self):
        body = "  work();\n" * 69
        self.expect(
            {"runtime/base/a.cpp": f"int f(int x) {{\n{body}}}\n"}, "function-size", "71 lines"
        )
        self.expect_clean({"runtime/base/a.cpp": f"int f(int x) {{\n{body[10:]}}}\n"})

    def test_a_long_function_may_shrink_but_not_grow(self):
        ratchet = {"tests/tidy/long_functions.txt": "runtime/base/a.cpp f 80\n"}
        long = "int f(int x) {\n" + "  work();\n" * 78 + "}\n"
        self.expect_clean({**ratchet, "runtime/base/a.cpp": long})
        longer = long.replace("}", "  work();\n}")
        self.expect({**ratchet, "runtime/base/a.cpp": longer}, "function-size", "81 lines")
        short = "int f(int x) {}\n"
        self.expect({**ratchet, "runtime/base/a.cpp": short}, "function-size", "drop its line")

    def test_a_long_file(self):
        self.expect({"runtime/base/a.cpp": "int x;\n" * 601}, "file-size", "601 lines")

    def test_a_long_line(self):
        self.expect({"runtime/base/a.cpp": "int " + "x" * 97 + ";\n"}, "columns", "102 columns")

    def test_trailing_white_space(self):
        self.expect({"runtime/base/a.cpp": "int x; \n"}, "columns", "end of the line")

    def test_a_sleep_in_a_test(self):
        text = "std::this_thread::sleep_for(1s);\n"
        self.expect({"runtime/base/a_test.cpp": text}, "sleep", "signal")
        self.expect({"tests/x/run.sh": "sleep 2\n"}, "sleep", "signal")
        self.expect_clean({"runtime/base/a.cpp": text})

    def test_an_exception_needs_a_reason(self):
        text = "std::this_thread::sleep_for(1s);  // tidy-allow(sleep):"
        self.expect({"runtime/base/a_test.cpp": text + "\n"}, "sleep", "signal")
        self.expect_clean({"runtime/base/a_test.cpp": text + " the pause is what is tested\n"})

    def test_leftovers(self):
        for text in [
            "// TO" + "DO: later",
            "// FIX" + "ME",
            "// NO" + "COMMIT",
            'auto p = "/ro' + 'ot/x";',
        ]:
            self.expect({"runtime/base/a.cpp": text + "\n"}, "leftover", "")

    def test_a_synonym(self):
        self.expect({"docs/a.md": "Each wor" + "ker waits.\n"}, "glossary", "say rank")
        self.expect({"runtime/base/a.cpp": "// the pee" + "rs\n"}, "glossary", "say rank")
        self.expect_clean({"docs/a.md": "peer credentials are checked; a NUMA node\n"})

    def test_a_source_that_nobody_builds(self):
        files = {"runtime/base/a.cpp": "int x;\n", "runtime/base/CMakeLists.txt": "\n"}
        self.expect(files, "dead-file", "no CMakeLists.txt")

    def test_a_header_that_nobody_includes(self):
        self.expect({"runtime/base/a.hpp": "int x;\n"}, "dead-file", "nobody includes it")

    def test_a_source_named_by_a_variable(self):
        files = {
            "examples/CMakeLists.txt": "add_executable(x ${name}/main.cpp)\n",
            "examples/01/main.cpp": "int main() {}\n",
        }
        self.expect_clean(files)

    def test_a_public_class_without_threads(self):
        text = "/// A thing.\nclass Thing {\n};\n"
        self.expect({"runtime/include/regroup/thing.hpp": text}, "threads", "public class")
        self.expect_clean(
            {"runtime/include/regroup/thing.hpp": "/// Thread safety: none.\n" + text}
        )

    def test_an_error_code_without_a_word(self):
        text = STATUS.replace("};", "  Odd,\n};")
        self.expect({"runtime/include/regroup/status.hpp": text}, "codes", "Odd")

    def test_an_unknown_variable(self):
        text = 'auto v = get("REGROUP_' + 'NEW");\n'
        self.expect({"launcher/a.cpp": text}, "environment", "docs/environment.md")
        self.expect_clean({"launcher/a.cpp": text, "docs/environment.md": "`REGROUP_NEW`: it\n"})

    def test_an_unknown_error_code(self):
        text = 'fail("E-NE' + 'W-1 no");\n'
        self.expect({"launcher/a.cpp": text}, "errors", "docs/errors.md")
        self.expect_clean({"launcher/a.cpp": text, "docs/errors.md": "`E-NEW-1`: it\n"})

    def test_a_page_that_points_nowhere(self):
        self.expect({"docs/a.md": "see [this](b.md)\n"}, "docs", "no file b.md")
        self.expect({"docs/a.md": "see `runtime/base/b.cpp`\n"}, "docs", "no file runtime/base/b")
        files = {"docs/a.md": "see [this](b.md), `runtime/base/b.*`\n", "docs/b.md": "\n"}
        self.expect_clean({**files, "runtime/base/b.cpp": "int x;\n"})


class Text(unittest.TestCase):
    def test_functions_are_found_by_name(self):
        text = (
            "namespace a {\nclass B {\n  int c() const {\n    return 1;\n  }\n};\n"
            "B::B(int x) : x_(x) {\n}\nTEST(S, n) {\n  auto l = [] {\n  };\n}\n}\n"
        )
        names = [(name, lines) for name, _, lines in cpp_text.functions(text)]
        self.assertEqual(names, [("c", 3), ("B::B", 2), ("TEST(S,n)", 4)])

    def test_digit_separators_are_no_characters(self):
        self.assertEqual(cpp_text.code_only("int a = 1'000; // b"), "int a = 1'000;     ")


if __name__ == "__main__":
    unittest.main()
