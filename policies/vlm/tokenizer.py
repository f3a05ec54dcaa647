"""A small byte-level BPE tokenizer with a chat template, made on the spot from a few sentences.

Every text has an encoding: the 256 bytes are tokens. The merges are those of ``CORPUS``, so that
the words of simple questions about pictures are one token each. Special tokens come last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = """
what which where how many is are the there of in on to a an and or not this that it image picture
what colour is the square? which shape is larger? how many circles are there? where is the triangle?
is the red circle left of the blue square? answer yes or no. answer with one word. answer briefly.
red green blue yellow orange purple black white grey brown pink cyan circle square triangle star
cross left right above below top bottom middle corner larger smaller more fewer equal same different
yes no true false zero one two three four five six seven eight nine ten think answer box point
count number position compare you user assistant system question please give choose option
the answer is red. the answer is blue. the answer is three. it is on the left. there are two.
"""
BPE_VOCABULARY = 512
END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML; ``IMAGE`` stands for what a model has in the place of an image."""


def byte_bpe() -> Tokenizer:
    """The tokenizer without special tokens: 256 bytes and the merges of ``CORPUS``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_VOCABULARY,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = CORPUS.split()
    # every word also as the first one of a text, where no space stands before it
    lines = [*CORPUS.strip().split("\n"), *words]
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def chat_tokenizer(
    *, image: str, special: Sequence[str], named: Mapping[str, str]
) -> PreTrainedTokenizerFast:
    """A tokenizer in the form that transformers saves and loads.

    Args:
        image: what the chat template writes for an image.
        special: special tokens beside those of the chat format.
        named: special tokens that processors look up as attributes, e.g. ``image_token``.
    """
    tokens = dict.fromkeys(["<|im_start|>", *special, *named.values()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_bpe(),
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        bos_token="<|bos|>",
        extra_special_tokens=dict(named),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE.replace("IMAGE", image)
    return tokenizer
