"""Metadata fields of weights files (config.json, GGUF): each is used, ignored for a stated reason, or refused.

    FIELDS = Fields(used=("hidden_size",), ignored={"use_cache": "how transformers generates"}, only={"pretraining_tp": (1,)})
    FIELDS.check(config, path)            raises WeightsError for a field that would change what the model computes
    FIELDS.fate("use_cache")              "ignored: how transformers generates"

A field that is not in the table may be what makes the model another one, so an unknown field is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from tenfold.errors import WeightsError, nearest


@dataclass(frozen=True)
class Fields:
    """used: names that the reader looks at. ignored: names, or patterns with `*`, and why they change nothing. only: the
    values of a field that leave the model as it is here. Fields that are null say nothing and are taken."""

    used: Collection[str] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def fate(self, name: str) -> str:
        """What becomes of a field of this name."""
        if name in self.used:
            return "used"
        if name in self.only:
            return f"refused unless {' or '.join(map(repr, self.only[name])) or 'null'}"
        reason = next((why for pattern, why in self.ignored.items() if fnmatchcase(name, pattern)), None)
        return "refused" if reason is None else f"ignored: {reason}"

    def check(self, values: Mapping[str, Any], where: object) -> None:
        """Raises WeightsError that names every field which cannot be honoured."""
        wrong = []
        for name, value in values.items():
            fate = self.fate(name)
            if not fate.startswith("refused") or value is None:
                continue
            if name in self.only and any(value == one for one in self.only[name]):
                continue
            allowed = f"; allowed is {' or '.join(map(repr, self.only[name])) or 'null'}" if name in self.only else ""
            close = "" if name in self.only else nearest(name, [*self.used, *self.only])
            shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:80] + " ..."
            wrong.append(f"  {name} = {shown}{allowed}" + (f" (is it {close}?)" if close else ""))
        if wrong:
            raise WeightsError(
                f"{where}: fields of it would change what the model computes, or are not known; nothing was loaded.\n"
                + "\n".join(wrong)
                + "\nA model that needs them cannot be read. Remove a field only where it changes nothing."
            )


_TRAINING = "acts in training alone"
_GENERATE = "how transformers generates, or what its calls return"
_MADE = "says how the file was made, not what it computes"
_TASK = "belongs to heads of other tasks, whose tensors would be refused"

# What config.json of any transformers model may carry.
GENERAL_IGNORED = {
    "architectures": "the tensors' names decide",
    "_name_or_path": _MADE,
    "transformers_version": _MADE,
    "transformers.js_config": _MADE,
    "unsloth_*": _MADE,
    "is_llama_config": _MADE,
    "torch_dtype": "the tensors have their own number format",
    "dtype": "the tensors have their own number format",
    "initializer_*": _TRAINING,
    "*dropout*": _TRAINING,
    "*drop_path*": _TRAINING,
    "out_features": _GENERATE,
    "out_indices": _GENERATE,
    "stage_names": _GENERATE,
    "reshape_hidden_states": _GENERATE,
    "drop_rate": _TRAINING,
    "use_cache": _GENERATE,
    "return_dict": _GENERATE,
    "output_*": _GENERATE,
    "_attn_implementation*": "another order of the same sums",
    "attn_implementation": "another order of the same sums",
    "pad_token_id": "nothing is padded",
    "sep_token_id": "belongs to encoders",
    "decoder_start_token_id": "belongs to encoder-decoder models",
    "id2label": _TASK,
    "label2id": _TASK,
    "num_labels": _TASK,
    "problem_type": _TASK,
    "finetuning_task": _TASK,
    "chunk_size_feed_forward": "another order of the same products",
    "tokenizer_class": "the vocabulary is in tokenizer.json",
    "torchscript": _GENERATE,
    "tie_encoder_decoder": "belongs to encoder-decoder models",
    "prefix": _TASK,
    "task_specific_params": _GENERATE,
    **dict.fromkeys(
        (
            "min_length",
            "max_length",
            "do_sample",
            "early_stopping",
            "num_beams",
            "num_beam_groups",
            "diversity_penalty",
            "temperature",
            "top_k",
            "top_p",
            "typical_p",
            "repetition_penalty",
            "length_penalty",
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "bad_words_ids",
            "num_return_sequences",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "remove_invalid_values",
            "exponential_decay_length_penalty",
            "suppress_tokens",
            "begin_suppress_tokens",
        ),
        _GENERATE,
    ),
}
# Switches of any transformers model that would make it another one.
GENERAL_ONLY: dict[str, tuple[Any, ...]] = {
    "pruned_heads": ({},),
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),  # both see the text before alone
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (),
    "quantization_config": (),
    "use_bfloat16": (False,),
}
