"""Golden values for model/token from Hugging Face's tokenizers and transformers.

usage: python3 scripts/reference/tokenizer.py   (from the top of the checkout)

Reads   model/token/testdata/corpus.txt
        model/token/testdata/trained/tokenizer.json  (go test ./model/token -update)
Writes  model/token/testdata/classes.json   the characters of each class
        model/token/testdata/hf.json        per pattern: merges that their trainer
                                            learns from the corpus, texts with ids
        model/token/testdata/trained.json   texts and chats with ids, by our file
"""
import json
import random
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

DIR = "model/token/testdata/"
PATTERNS = {
    "gpt2": None,
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def classes():
    out = {}
    for name, regex in (("letter", r"\p{L}"), ("number", r"\p{N}"), ("space", r"\s")):
        split, ranges = pre_tokenizers.Split(Regex(regex), "removed"), []
        for c in range(0x110000):
            if 0xD800 <= c < 0xE000 or split.pre_tokenize_str(chr(c)):
                continue
            if ranges and ranges[-1][1] == c - 1:
                ranges[-1][1] = c
            else:
                ranges.append([c, c])
        out[name] = ranges
    return out


def texts():
    hand = [
        "", " ", "  ", "\n", "\r\n", "a", " a", "  a", "a ", "a  ", "a\n", "a \n b", "a\n\n\n  b", "\t\tx", " \t x", "x \r\n\r\n y",
        "it's IT'S we'LL We'Ve 'tis 'S'T'RE x'ſy 'ſ 'm'd'll'v'r 're've' ''s", "don't", "'sad 'Tear", "0", "12", "123", "1234567890", "a1b22c333d4444",
        " 12 345", "½¾ Ⅷ ٣٤٥ १२३", "x=1;y+=22\n", "if (a&&b)\n{\n\treturn 0;\n}\n", "!!!\n\n", " !!!\r\n x", "...", " ... ", "#include <stdio.h>\n",
        "é é ﬁ Å Å ñ ñ", "日本語のテキスト、です。", "한국어 텍스트", "Привет, мир!", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया",
        "🙂🙃 👩‍👩‍👧‍👦 🇩🇪", "a\u00a0b\u2003c\u3000d\u2028e\u0085f", "\u200b\ufeff", "\x00\x01\x7f", "a\x00b", "\U0001d7d8\U0001d400", "\u1c89\U00010d40x",
        "<|im_end|>", "a<|im_start|>user\nhi<|im_end|>\n", "<|im_end|><|im_end|>", "<|im_end", " <|endoftext|> x", "a" * 300, "ab" * 200, " " * 200 + "x", "=" * 150 + "\n" * 5,
        "\n" * 40, "def f(x):\n    return x + 1\n\n\nclass A:\n    pass\n", "naïve café", "_a __init__ a_b", "$x %d @y ~/z",
    ]
    rng = random.Random(7)
    bits = list(" \n\r\t'stremvld0a1Z_-.=(\"é日ſ½\u00a0\u2028🙂") + ["'s", "'LL", "  ", "\r\n", "the", "self", "return", " def", "<|im_end|>", "é", "123"]
    for _ in range(160):
        hand.append("".join(rng.choice(bits) for _ in range(rng.randint(1, 40))))
    for _ in range(60):
        cs = []
        while len(cs) < rng.randint(1, 16):
            c = rng.choice([rng.randrange(0x250), rng.randrange(0x3000), rng.randrange(0x110000)])
            if not 0xD800 <= c < 0xE000:
                cs.append(chr(c))
        hand.append("".join(cs))
    return hand


def train(pattern, corpus):
    t = Tokenizer(models.BPE())
    if pattern is None:
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        t.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator([corpus], trainers.BpeTrainer(
        vocab_size=700, min_frequency=2, special_tokens=SPECIALS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return t


def dump(name, value):
    with open(DIR + name, "w") as f:
        json.dump(value, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")


def main():
    with open(DIR + "corpus.txt", newline="") as f:
        corpus = f.read()
    dump("classes.json", classes())
    strings, golden = texts(), {}
    for name, pattern in PATTERNS.items():
        t = train(pattern, corpus)
        merges = json.loads(t.to_str())["model"]["merges"]
        golden[name] = {"merges": [" ".join(m) for m in merges], "ids": [t.encode(s, add_special_tokens=False).ids for s in strings]}
    dump("hf.json", {"texts": strings, "patterns": golden})

    path = DIR + "trained/tokenizer.json"
    t = Tokenizer.from_file(path)
    fast = PreTrainedTokenizerFast.from_pretrained(DIR + "trained")
    chats = [
        [{"role": "user", "content": "Fix it."}],
        [{"role": "system", "content": "You repair code.\n"}, {"role": "user", "content": "def f(x):\n  return x"},
         {"role": "assistant", "content": "<tool: bash>\nls\n</tool>"}, {"role": "user", "content": " a.py\n"}],
    ]
    dump("trained.json", {
        "ids": [t.encode(s, add_special_tokens=False).ids for s in strings],
        "chats": [{"messages": c, "ids": list(fast.apply_chat_template(c, add_generation_prompt=True, tokenize=True, return_dict=False))} for c in chats]})


main()
