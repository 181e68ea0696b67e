"""Command lines and flags that documentation pages show, found in Markdown: for the tests that parse them."""

from __future__ import annotations

import re
import shlex


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced code blocks of a page; `languages` are the words behind the fence, "" for none."""
    return [code for language, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M) if language in languages]


def commands(text: str) -> list[list[str]]:
    """The words of every tenfold command in the shell blocks of a page, without `tenfold` itself.

    A command ends at `#`, at two spaces (what follows explains it), at `&&`, and goes on behind a backslash. `...` is left out.
    """
    found = []
    for code in blocks(text, "", "bash", "sh", "console"):
        for line in code.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;", line.strip()):
                start = re.match(r"(?:.* -m )?tenfold (?=\S)", part.strip())
                if start is not None:
                    words = re.split(r"\s{2,}|\s#", part.strip()[start.end() :])[0]
                    found.append([word for word in shlex.split(words) if word != "..."])
    return found


def inline_commands(text: str) -> list[list[str]]:
    """The words of every `tenfold ...` in the prose of a page. They may be short forms, such as `tenfold language tree`."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    found = []
    for code in re.findall(r"`tenfold ([^`]+)`", prose):
        words = [word for word in shlex.split(" ".join(code.split())) if word != "..."]
        if not any(re.search(r"[A-Z]{3,}|[*|\[]", word) for word in words[:2]):  # `tenfold bench NAME` names no command
            found.append(words)
    return found


def inline_flags(text: str) -> set[str]:
    """The flags that the prose of a page names: `--size`, `--facts.kind world`."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    codes = re.findall(r"`([^`]+)`", prose)
    return {flag for code in codes for flag in re.findall(r"(?<![\w-])--([a-z][\w.-]*)", code)}
