"""The vocabulary of pages and code: the field's terms, so that a search for KV cache, rejection sampling or rollout finds them.

`WORDS` has what is not written and what is written instead; `ALLOWED` the places where such a word is right, each with its
reason. `WORDS_IN` and `FIRST_LINES_OF` say which files are read: to add one, add a pattern.
"""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

WORDS_IN = ("README.md", "CONTRIBUTING.md", "docs/*.md", "src/tenfold/**/*.py", "src/tenfold/assets/*.md")
FIRST_LINES_OF = ("src/tenfold/**/*.py",)
HISTORY = ("docs/LOG.md",)  # what was written then stays as it was

WORDS = {  # pattern (case does not matter): what to write instead
    r"\blaws?\b": "distribution, probabilities",
    r"\bguess(?:es|ed|ing)?\b": "draft token, proposal",
    r"\b(?:token|node|draft|proposal)s? (?:that |which )?(?:stands?|are taken)\b": "accepted, rejection sampling, bonus token",
    r"\blook(?:ed)?-ups?\b": "prompt lookup, n-gram drafting",
    r"\bkeys and values of prompts\b|\bprompts seen before\b": "KV cache, prefix cache, block table",
    r"\bhand(?:s|ed|ing)?[- ]?over\b": "disaggregated prefill, transfer",
    r"\brows that cost little\b": "memory-bound rows",
    r"\bfloors?\b": "baseline",
    r"(?<!standard )\bdeviations?\b": "standard deviation",
    r"\bahead\b|(?<!in )(?<!in-)\bflights?\b|\blanding\b|\blanded\b": "asynchronous scheduling, in-flight step",
    r"\bnobody\b": "padding",
    r"\banswers? of the target\b|\btarget's (?:own )?answers?\b": "rollout",
    r"\bdescriptors?\b|\bimages? described\b": "embedding, encoder",
    r"\b(?:to|on|of) (?:the|a|this|one) processors?\b": "CPU",
    r"\brules? [ABC]\b": "top_k, independent, without_replacement",
    # plain English
    r"\b(?:is|are) no\b(?! (?:more|longer|fewer|less)\b)": "is not, has no",
    r"\bstands? for\b": "means, is",
    r"\banew\b": "again",
    r"\bgo(?:es)? on\b": "continue",
}


class Allowed(NamedTuple):
    """A word that is right in the lines of these files that match `line`."""

    word: str  # as it is found, in lower case
    files: str  # a pattern of paths
    line: str  # a regular expression
    reason: str


IDENTIFIER = r"`floor`|\bfloors?\s*[=:,)\].(}*]|[\"'_.(]floors?\b|\*\*floors|, floors?\b| < floor"

ALLOWED = [
    *(
        Allowed(
            word,
            "src/tenfold/**/*.py",
            IDENTIFIER,
            "an identifier: the best score without the model, or the lowest value kept",
        )
        for word in ("floor", "floors")
    ),
    Allowed(
        "ahead",
        "src/tenfold/language/decoding/engine.py",
        r"\bahead\b",
        "the former name of async_scheduling, for one version",
    ),
    Allowed(
        "handover", "src/tenfold/language/serving/prefill_transfer.py", "FORMER", "the former route, for one version"
    ),
    Allowed(
        "floor",
        "CONTRIBUTING.md",
        r"^\| baseline, floor \|",
        "the glossary defines the name that fields and functions have",
    ),
]

NOUNS = """
2:4 acceptance activation adamw aggregation alignment annotation api archive atomic attention augmentation autograd
backbone backend backpropagation backward baseline batch batching benchmark bpe cache calibration caption checkpoint
cli clip clipping command command-line cpu deprecated exception html meta progress terminal write writes cluster clustering collective compiler configuration conformance container contract convnext ctypes
convolution correspondence cpu crop cross-entropy csv cuda curation dataclass dataset decoder decoding deduplication
depth dino dinov2 dinov3 disparity distillation distribution draft drafter drafting duplicate eagle ema embedding
encoder engine epoch evaluation executor expert export feature feed-forward fine-tuning forward fp8 fsdp fused gelu
generation gguf gpu gradient grammar hash head heartbeat histogram http image inference initialisation iou jpeg json
k-means k-nn kernel kv label language latency layer layernorm learning linear llama llm loader lock logit loss
manifest masking matching memory metric mlp model momentum multi-crop nccl neighbour network noise norm normalisation
objective onnx openai optimizer packing padding paging parallelism parameter parquet patch pca perplexity photograph
pipeline pixel png pooling precision preemption prefill prefix pretraining probability probe product-key projection
prometheus prompt protocol prototype provenance pruning quantisation rank ray reader recall recipe registry regression
regularisation rejection relu replay replica resampling resize resume retrieval rmsnorm rollout rope rotary route rows
safetensors sampler sampling schedule scheduler schema seed segmentation self-distillation self-supervised server
serving sha-256 shard similarity sinkhorn-knopp softmax sparse sparsity speculation speculative squared-relu step
stereo streaming stride student swiglu tar task teacher template tensor tensorboard throughput token tokenizer torch
torchrun torchvision tracking trainer training transformer tree triton tuning tyro validation vector verification
vision vit vocabulary weight wheel worker zero-shot
"""


def files(patterns: tuple[str, ...]) -> list[Path]:
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(path for path in found if str(path.relative_to(ROOT)) not in HISTORY)


def wrong_words(path: Path, text: str) -> list[str]:
    """Every place that has a word of the left column and is not allowed: `file:line: word -> instead`."""
    wrong = []
    # README's tree quotes the first lines of source files, which are judged there.
    shown = re.sub(r"<!-- files -->.*?<!-- end -->", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
    for number, line in enumerate(shown.splitlines(), 1):
        for pattern, instead in WORDS.items():
            for match in re.finditer(pattern, line, re.IGNORECASE):
                word = match[0].lower()
                if not any(a.word == word and fnmatch(str(path), a.files) and re.search(a.line, line) for a in ALLOWED):
                    wrong.append(f"{path}:{number}: {match[0]!r}, write: {instead}")
    return wrong


def first_line_problem(text: str) -> str:
    """What is wrong with the first line of a source file's docstring; "" for a sentence that has a noun of the field."""
    docstring = ast.get_docstring(ast.parse(text))
    if not docstring or not docstring.strip():
        return "no docstring"
    line = docstring.strip().splitlines()[0]
    if len(line.split()) < 3:
        return f"not a sentence: {line!r}"
    words = {word for part in re.findall(r"\d:\d|[\w+-]+", line.lower()) for word in (part, *re.split(r"[-_]", part))}
    words |= {word.removesuffix("s") for word in words} | {word.removesuffix("es") for word in words}
    return "" if words & set(NOUNS.split()) else f"no noun of the field: {line!r}"


def test_pages_use_the_words_of_the_field() -> None:
    wrong = [w for path in files(WORDS_IN) for w in wrong_words(path.relative_to(ROOT), path.read_text())]
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_first_line_of_each_file_has_a_noun_of_the_field() -> None:
    problems = {str(path.relative_to(ROOT)): first_line_problem(path.read_text()) for path in files(FIRST_LINES_OF)}
    wrong = [f"{name}: {problem}" for name, problem in problems.items() if problem]
    assert problems
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("allowed", ALLOWED, ids=lambda allowed: f"{allowed.word} in {allowed.files}")
def test_every_allowed_place_is_there_and_has_a_reason(allowed: Allowed) -> None:
    assert allowed.reason
    lines = [line for path in ROOT.glob(allowed.files) for line in path.read_text().splitlines()]
    assert any(re.search(allowed.line, line) and allowed.word in line.lower() for line in lines)


@pytest.mark.parametrize(
    "line",
    [
        "the same law",
        "guessed tokens",
        "which of the tokens stand",
        "a look-up chain",
        "the floor of k-NN",
        "a deviation of 0.02",
        "the host runs ahead",
        "the answers of the target",
        "verified by rule C",
        "there is no GPU",
        "it goes on",
    ],
)
def test_a_word_of_the_left_column_is_noticed(line: str) -> None:
    assert wrong_words(Path("docs/page.md"), f"One line.\n{line}\n")[0].startswith("docs/page.md:2: ")


@pytest.mark.parametrize(
    "line", ["a step in flight", "standard deviation", "memory layers look rows up", "1.5 no more"]
)
def test_the_right_words_pass(line: str) -> None:
    assert not wrong_words(Path("docs/page.md"), line)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('"""KV cache of one request, cut into pages."""', ""),
        ('"""What they say to each other."""', "no noun of the field"),
        ('"""Cache."""', "not a sentence"),
        ("x = 1", "no docstring"),
    ],
)
def test_a_first_line_without_a_noun_is_noticed(text: str, problem: str) -> None:
    assert first_line_problem(text).startswith(problem)
    assert bool(first_line_problem(text)) == bool(problem)
