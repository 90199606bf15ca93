"""Chats rendered by transformers, for model/token.

usage: python3 scripts/reference/template.py   (from the top of the checkout)
       python3 scripts/reference/template.py --check < CASES

Reads   model/token/testdata/templates/*.jinja
        model/token/testdata/conversations.json   lists of messages, tools and options
Writes  model/token/testdata/rendered.json        per template and conversation, the text,
                                                  or null where the template refuses

With --check it renders a JSON list of {template, tokens, conversation} instead.
"""
import json
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

DIR = Path("model/token/testdata")
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def render(template, tokens, c):
    try:
        out = render_jinja_template(
            conversations=[c["messages"]], tools=c.get("tools"), chat_template=template,
            add_generation_prompt=c.get("prompt", False), **tokens, **c.get("options", {}))
    except Exception as e:  # whatever the template raises is a refusal
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        return None
    return out[0][0]


if sys.argv[1:2] == ["--check"]:
    json.dump([render(**case) for case in json.load(sys.stdin)], sys.stdout)
else:
    conversations = json.loads((DIR / "conversations.json").read_text())
    rendered = {f.stem: [render(f.read_text(), TOKENS, c) for c in conversations] for f in sorted((DIR / "templates").glob("*.jinja"))}
    (DIR / "rendered.json").write_text(json.dumps(rendered, indent=1) + "\n")
