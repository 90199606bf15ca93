import json
import re
import sys

LINE = re.compile(r"^\w+ \((?P<test>[\w.]+)\) \.\.\. (?P<result>ok|FAIL|ERROR)$")

tests = {}
for line in sys.stdin.read().splitlines():
    match = LINE.match(line)
    if match:
        good = match.group("result") == "ok"
        tests[match.group("test")] = "passed" if good else "failed"
print(json.dumps(tests, sort_keys=True))
