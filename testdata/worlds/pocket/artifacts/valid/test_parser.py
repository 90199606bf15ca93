import json
import re
import sys

LINE = re.compile(r"^(?P<result>ok  |FAIL) (?P<test>\w+)")

tests = {}
for line in sys.stdin.read().splitlines():
    match = LINE.match(line)
    if match:
        good = match.group("result") == "ok  "
        tests[match.group("test")] = "passed" if good else "failed"
print(json.dumps(tests, sort_keys=True))
