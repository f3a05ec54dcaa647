"""Vision-language models as policies: an answer is a chunk of tokens. Needs the extra ``vlm``."""
