"""Small files of rows, a tokenizer of their words, and the stream that a configuration makes of them."""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import BertProcessing, TemplateProcessing
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from retain.config import parse
from retain.data import DataError, Stream, load_stream

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]


def rows(labels: list[Any], each: int = 10) -> list[dict[str, Any]]:
    return [{"text": f"{WORDS[i % 8]} {label} {i}", "label": label} for i in range(each) for label in labels]


def jsonl(path: Path, content: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, content)))
    return str(path)


def stream(processor: Any, *tasks: dict[str, Any], **config: Any) -> Stream:
    named = [{"name": f"t{i}", "path": "json"} | task for i, task in enumerate(tasks)]
    return load_stream(
        parse({"model": {"path": "m", "kind": config.pop("kind", "text")}, "tasks": named} | config), processor
    )


@cache
def word_tokenizer() -> Any:
    """BERT's layout over the words of these tests."""
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "word", "win", "loss", "sad", "glad", *map(str, range(100))]
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(known)}, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=512, pad_token="[PAD]", eos_token="[SEP]", model_input_names=names
    )


def labels_of(data: Any) -> list[int]:
    return [row["labels"] for row in data]


def refused(tokenizer: Any, entry: dict[str, Any], **config: Any) -> str:
    with pytest.raises(DataError) as error:
        stream(tokenizer, entry, **config)
    message = str(error.value)
    assert "\n" not in message and "t0" in message
    return message


TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


@cache
def chat_tokenizer() -> Any:
    """A causal model's layout over the words of these tests, with a chat template."""
    special = ["<pad>", "<unk>", "<bos>", "<eos>", "<system>", "<user>", "<assistant>"]
    known = [*special, *WORDS, "word", "win", "loss", "sad", "glad", *map(str, range(100))]
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=64,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=special[4:],
        model_input_names=["input_ids", "attention_mask"],
        chat_template=TEMPLATE,
    )


PICTURED = (  # like LLaVA's, which writes neither what opens a text nor what ends it
    "{% for m in messages %}{{ '<' + m['role'] + '> ' }}"
    "{% for c in m['content'] %}{{ '<image> ' if c['type'] == 'image' else c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def picture_processor() -> Any:
    """LLaVA's processor over the words of these tests, for pictures of 8 by 8 pixels."""
    tokenizer = copy.deepcopy(chat_tokenizer())
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    pixels = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    return LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=PICTURED,
    )


@cache
def pair_tokenizer() -> Any:
    """T5's layout over the words of these tests: a text ends with an end, and nothing opens it."""
    known = ["<pad>", "</s>", "<unk>", *WORDS, "word", "win", "loss", "sad", "glad", "###", "Response:", "Instruction:"]
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = ["input_ids", "attention_mask"]
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, model_input_names=names, **special)


def language_stream(tokenizer: Any, *tasks: dict[str, Any], **config: Any) -> Stream:
    """What a configuration of ``kind: causal-lm`` makes of ``tasks``."""
    return stream(tokenizer, *tasks, kind="causal-lm", **config)
