# SPDX-License-Identifier: Apache-2.0
"""Whatever a user's text contains, a card shows it and nothing else: no heading, link, image, row or HTML."""

import ast
import re

import pytest

from diffusers_mdm.training.reports.markdown import inline_code, one_line, plain_text, python_string, table_row

TEXTS = [
    "red cat",
    "a\n# Heading\r\n\n---\n![picture](http://example.com/x.png)",
    "[link](http://example.com) <script>alert(1)</script> &amp;",
    "`` ` ``` code ```",
    "`",
    "a | b || c \\| d",
    "halves \ud83d of \udc00 characters",
    "line\u2028paragraph\u2029next\x85bell\x07tab\tvt\x0b",
    "👩\u200d🚀 über 漢字",
]


@pytest.mark.parametrize("text", [*TEXTS, ""])
def test_code_is_one_span_on_one_line(text):
    span = inline_code(text)
    assert len(span.splitlines()) == 1
    span.encode("utf-8")
    if text:
        fence = re.match("`+", span)[0]
        assert span.endswith(fence)
        inside = span[len(fence) : -len(fence)]
        # The span ends at the first run of backticks that is as long as the one that opened it.
        assert fence not in re.findall("`+", inside)
        assert inside.strip() == one_line(text)


@pytest.mark.parametrize("text", TEXTS)
def test_running_text_is_no_markup(text):
    plain = plain_text(text)
    assert len(plain.splitlines()) == 1
    assert not re.search(r"(?<!\\)[`*\[\]<>&|]", re.sub(r"\\\\", "", plain))


@pytest.mark.parametrize("text", TEXTS)
def test_a_cell_stays_one_cell(text):
    row = table_row([inline_code(text), plain_text(text), "3"])
    assert len(row.splitlines()) == 1
    assert len(re.split(r"(?<!\\)\|", row)) == 5


@pytest.mark.parametrize("text", TEXTS)
def test_python_reads_back_what_was_written(text):
    literal = python_string(text)
    assert "\n" not in literal
    literal.encode("utf-8")
    assert ast.literal_eval(literal) == text


def test_what_is_harmless_stays_as_it_is():
    assert inline_code("sks frog, 3d render") == "`sks frog, 3d render`"
    assert one_line("👩\u200d🚀") == "👩\u200d🚀"
    assert plain_text("my_model-64") == "my_model-64"
