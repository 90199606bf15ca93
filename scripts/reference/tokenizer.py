"""Golden values for model/token from Hugging Face's tokenizers and transformers.

usage: python3 scripts/reference/tokenizer.py   (from the top of the checkout)
       python3 scripts/reference/tokenizer.py --check TOKENIZER.JSON < STRINGS

With --check it prints, for each of a JSON list of strings, [ids, their text].

Reads   model/token/testdata/corpus.txt
        model/token/testdata/trained/tokenizer.json  (go test ./model/token -update)
Writes  model/token/testdata/classes.json   the characters of each class
        model/token/testdata/hf.json        per pattern: merges that their trainer
                                            learns from the corpus, texts with ids
        model/token/testdata/trained.json   texts and chats with ids, by our file
        model/token/testdata/pieces.json    a tokenizer of the SentencePiece kind
        model/token/testdata/tekken.json    a tokenizer as Mistral's newer models have
        model/token/testdata/mixed.json     fragments of which Go and Python make the
                                            same strings, and hashes of their ids
"""
import hashlib
import json
import random
import struct
import sys
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

DIR = "model/token/testdata/"
PATTERNS = {
    "gpt2": None,
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def classes():
    out = {}
    for name, regex in (("upper", r"[\p{Lu}\p{Lt}]"), ("lower", r"\p{Ll}"), ("caseless", r"[\p{Lm}\p{Lo}]"),
                        ("mark", r"\p{M}"), ("number", r"\p{N}"), ("space", r"\s")):
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


# Code in ten languages, diffs, white space, scripts, emoji, combining marks, numbers,
# special tokens whole and in part.
FRAGMENTS = [
    "def f(self, *args, **kw):\n    return {k: v for k, v in kw.items() if k != 'x'}\n",
    "    @property\n    def size(self) -> int:\n        \"\"\"It's the number of rows.\"\"\"\n        return len(self._rows)\n",
    "func (s *Set[T]) Add(v T) bool {\n\tif _, ok := s.m[v]; ok {\n\t\treturn false\n\t}\n\ts.m[v] = struct{}{}\n\treturn true\n}\n",
    "#include <stdio.h>\nint main(int argc, char **argv) { printf(\"%d\\n\", argc); return 0; }\n",
    "template <class T> constexpr auto max(const T &a, const T &b) noexcept -> T { return a < b ? b : a; }\n",
    "pub fn parse<'a>(s: &'a str) -> Result<Vec<&'a str>, Error> { Ok(s.split(\"::\").collect()) }\n",
    "const sum = (xs) => xs.reduce((a, b) => a + b, 0);\nexport default async () => await fetch(`/api?q=${x}`);\n",
    "interface Box<T extends object = {}> { readonly value?: T; [key: string]: unknown }\n",
    "public static void main(String[] args) throws IOException { for (int i = 0; i < 10; i++) System.out.println(i); }\n",
    "SELECT a.id, COUNT(*) FROM t AS a LEFT JOIN u ON a.id = u.id WHERE a.x >= 3.5e-2 GROUP BY 1;\n",
    "#!/bin/bash\nset -euo pipefail\nfor f in *.py; do [[ -f $f ]] && wc -l \"$f\" || true; done\n",
    "class Foo < Bar\n  attr_reader :x\n  def to_s = \"#{@x}!\"\nend\n",
    "let rec fold f acc = function [] -> acc | x :: xs -> fold f (f acc x) xs\n",
    "main :: IO ()\nmain = mapM_ print $ filter (\\x -> x `mod` 2 == 0) [1..10]\n",
    "diff --git a/x.py b/x.py\nindex 83db48f..bf2a4c1 100644\n--- a/x.py\n+++ b/x.py\n",
    "@@ -12,7 +12,9 @@ def f(x):\n-    return x+1\n+    # off by one\n+    return x + 2\n \n",
    "\\ No newline at end of file\n", "<<<<<<< SEARCH\n=======\n>>>>>>> REPLACE\n", "{\"a\": [1, 2.5, null, true], \"b\": \"\\u00e9\"}",
    "<div class=\"a b\">&nbsp;&lt;</div>", "# Title\n\n* item **bold**\n\n```py\nx\n```\n", "a: &x\n  - b\n  - {c: d}\n",
    " ", "  ", "   ", "    ", "        ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", "\r", " \n", "\n ", "\n    ", " \t ", "\u00a0", "\u3000", "\u2028", "\u200b", "\ufeff", "\x85", "\x0b", "\x0c",
    "the", " the", "The", " return", "it's", "I'LL", "we've", "'S", "d'être", "ſ", "'ſ", "snake_case_name", "camelCaseName", "HTTPServer2", "__init__",
    "0", "1", "12", "123", "1234", "3.14159", "0xDEADBEEF", "1_000_000", "1e-05", "-7", "½", "٣", "Ⅷ", "²", "𝟘",
    "日本語", "漢字かな交じり文。", "中文，标点！", "한국어 문장", "Привет", "שלום", "مرحبا", "नमस्ते", "ไทย", "Ελληνικά", "ქართული", "Straße", "naïve", "İstanbul", "ﬁ",
    "e\u0301", "\u0301", "a\u0308\u0304", "ñ", "n\u0303", "Å", "\u212b", "각", "\u1100\u1161\u11a8", "क\u094d", "\u0e33",
    "🙂", "👩‍👩‍👧‍👦", "🇩🇪", "👍🏽", "☃\ufe0f", "𐍈", "𒀀", "\U0001f9d1\u200d\U0001f680", "\ue000", "\uffff", "\U0010ffff", "\x00", "\x07", "\x7f", "\x80", "\xad",
    "!", "?!", "...", "->", "=>", "==", "!=", "::", "//", "/* */", "(", ")", "[]", "{}", "();", "\\", "\\n", "\"", "'", "`", "~", "@", "#", "$", "%", "^", "&&", "||", "----", "====", "▁", "▁▁", "Ġ", "Ċ",
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_end", "<|", "|>", "<|eot_id|>", "<|begin_of_text|>", "<s>", "</s>", "<unk>", "<0x41>", "<tool_call>", "</tool_call>", "<think>", "[INST]", "[/INST]",
    "http://example.com/a?b=c&d=%20#e", "foo@bar.com", "/usr/lib/x86_64-linux-gnu/libc.so.6", "2026-01-31T23:59:59Z", "a" * 40, "ab" * 60, "=" * 90, "x" * 200,
]
COUNT, BATCH = 5000, 50


def mixed():
    """COUNT strings of 1 to 12 fragments, drawn as mixedStrings in Go draws them."""
    state, out = 1, []

    def draw(n):
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (state >> 33) % n

    for _ in range(COUNT):
        out.append("".join(FRAGMENTS[draw(len(FRAGMENTS))] for _ in range(1 + draw(12))))
    return out


def hashes(t, strings):
    """For each BATCH of strings, the start of a hash of their ids and of what these decode to."""
    out = []
    for i in range(0, len(strings), BATCH):
        h = hashlib.sha256()
        for s in strings[i:i + BATCH]:
            ids = t.encode(s, add_special_tokens=False).ids
            text = t.decode(ids, skip_special_tokens=False).encode()
            h.update(struct.pack(f"<{len(ids) + 2}I", len(ids), *ids, len(text)) + text)
        out.append(h.hexdigest()[:8])
    return out


def pieces(corpus):
    """A tokenizer.json as converters write it for SentencePiece models such as Llama 2's and Mistral's."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    specials = ["<unk>", "<s>", "</s>"]
    t.train_from_iterator(corpus.splitlines(), trainers.BpeTrainer(
        vocab_size=700, min_frequency=2, special_tokens=specials + [f"<0x{b:02X}>" for b in range(256)], show_progress=False))
    f = json.loads(t.to_str())
    f["added_tokens"] = [a for a in f["added_tokens"] if a["content"] in specials]
    f["pre_tokenizer"] = None
    f["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    f["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    return f


def with_metaspace(f, scheme):
    """The other form, which newer conversions have."""
    return {**f, "normalizer": None, "pre_tokenizer": {
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}}


def tekken(corpus):
    """A tokenizer.json as Mistral Nemo's: its pattern, unnamed specials, ignore_merges, and tokens that no merge makes."""
    f = json.loads(train(PATTERNS["tekken"], corpus).to_str())
    specials = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"] + [f"<SPECIAL_{i}>" for i in range(5, 20)]
    vocab = specials + [v for v in f["model"]["vocab"] if v not in SPECIALS] + ["ĠServer", "HTTPServer", "Restaurant", "(self"]
    f["added_tokens"] = [{**f["added_tokens"][0], "id": i, "content": s} for i, s in enumerate(specials)]
    f["model"] |= {"vocab": {v: i for i, v in enumerate(vocab)}, "ignore_merges": True}
    f["post_processor"] = {"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    return f


def load(f):
    return Tokenizer.from_str(json.dumps(f))


def dump(name, value):
    with open(DIR + name, "w") as f:
        json.dump(value, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")


def main():
    with open(DIR + "corpus.txt", newline="") as f:
        corpus = f.read()
    dump("classes.json", classes())
    strings, golden, mix, sums = texts(), {}, mixed(), {}
    for name, pattern in PATTERNS.items():
        t = train(pattern, corpus)
        merges = json.loads(t.to_str())["model"]["merges"]
        golden[name] = {"merges": [" ".join(m) for m in merges], "ids": [t.encode(s, add_special_tokens=False).ids for s in strings]}
        sums[name] = hashes(t, mix)
    dump("hf.json", {"texts": strings, "patterns": golden})
    f = tekken(corpus)
    dump("tekken.json", f)
    sums["tekken file"] = hashes(load(f), mix)
    f = pieces(corpus)
    dump("pieces.json", f)
    sums["pieces"] = hashes(load(f), mix)
    for scheme in ("first", "always"):
        sums["pieces " + scheme] = hashes(load(with_metaspace(f, scheme)), mix)
    dump("mixed.json", {"fragments": FRAGMENTS, "count": COUNT, "batch": BATCH, "hashes": sums})

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


if sys.argv[1:2] == ["--check"]:
    t = Tokenizer.from_file(sys.argv[2])
    out = []
    for s in json.load(sys.stdin):
        ids = t.encode(s, add_special_tokens=False).ids
        out.append([ids, t.decode(ids, skip_special_tokens=False)])
    json.dump(out, sys.stdout)
else:
    main()
