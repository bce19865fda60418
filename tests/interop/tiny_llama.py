"""Make a language model on the spot: a two-layer Llama with random weights and a byte vocabulary.

Run as a program, in a process of its own, because importing torch takes seconds and hundreds of
megabytes: `python tiny_llama.py NAME`. The working directory gets it twice: as `greedy/NAME`, which
always answers alike, and as `sampling/NAME`, which draws its tokens.

It talks nonsense, but as a real model talks: a token is a byte, so that the text holds control
characters, now and then a character of two bytes, and U+FFFD wherever the bytes are no UTF-8;
answers end by an end-of-text token or by the limit of tokens.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

# By name, because the linters' environment has no engine in it.
torch: Any = import_module("torch")
tokenizers: Any = import_module("tokenizers")
transformers: Any = import_module("transformers")

SEED = 4
END, *ROLES = SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer() -> Any:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    bytewise = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    bytewise.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    bytewise.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=ROLES,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(tokenizer: Any) -> Any:
    torch.manual_seed(SEED)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.5,  # with the usual 0.02 it says one thing over and over
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # The engine computes many answers at once, in batches that differ from run to run, and so do
    # the rounding errors. In double precision they are far too small to change the likeliest token.
    model = transformers.LlamaForCausalLM(config).to(torch.float64)
    # Left to chance, an answer has hundreds of tokens.
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 1.6
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def main(name: str) -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    for kind in ("greedy", "sampling"):
        model.generation_config.do_sample = kind == "sampling"
        tokenizer.save_pretrained(Path(kind, name))
        model.save_pretrained(Path(kind, name))


if __name__ == "__main__":
    main(sys.argv[1])
