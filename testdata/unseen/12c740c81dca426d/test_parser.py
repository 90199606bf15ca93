import json, re, sys
log = re.findall(r"(\w+ \(\S+\))(?:\n.*)? \.\.\. (ok|FAIL|ERROR)", sys.stdin.read())
print(json.dumps({name: "passed" if end == "ok" else "failed" for name, end in log}))
