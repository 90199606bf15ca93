package selfplay

import "testing"

func TestDefaultNormaliser(t *testing.T) {
	for in, want := range map[string]string{
		"Ran 192 tests in 0.015s":                      "Ran 192 tests in 0.000s",
		"==== 3 passed in 12.34 seconds ====":          "==== 3 passed in 0.000 seconds ====",
		"--- PASS: TestX (0.13s)\nok  \tpkg\t1.234s":   "--- PASS: TestX (0.000s)\nok  \tpkg\t0.000s",
		"✓ renders (7 ms)":                             "✓ renders (0 ms)",
		"real\t0m1.004s":                               "real\t0m0.000s",
		"<object object at 0x7fdc01a2b3c4>":            "<object object at 0x7f0000000000>",
		"goroutine at 0xc0001a2b3c":                    "goroutine at 0xc000000000",
		"-rw-r--r-- 1 agent agent 0 Nov 21 09:22 x":    "-rw-r--r-- 1 agent agent 0 Jan  1 00:00 x",
		"drwxr-xr-x 2 agent agent 9 Jan  1  2000 calc": "drwxr-xr-x 2 agent agent 9 Jan  1  2000 calc",
		"--- a\t2026-11-21 09:22:33.123456789 +0000":   "--- a\t2000-01-01 00:00:00.000000000 +0000",
		"/tmp/tmpab12cd34/x /tmp/tmp.AbCdEf0123":       "/tmp/tmp00000000/x /tmp/tmp.0000000000",
		// A pipeline's complaints come in an order of their own.
		"a\npython3: can't open file 'p': [Errno 2] No such file or directory\nbash: s: No such file or directory\nb\n": "a\nbash: s: No such file or directory\npython3: can't open file 'p': [Errno 2] No such file or directory\nb\n",
		"sed: z: Is a directory\nsed: a: Is a directory\n":                                                              "sed: z: Is a directory\nsed: a: Is a directory\n",
		"python3: p: Permission denied\nbash: s: No such file or directory":                                             "bash: s: No such file or directory\npython3: p: Permission denied",
		"name: x\nage: y\n": "name: x\nage: y\n",
		// Code and data stay as they are.
		"PRIME = 0x100000001b3; MASK = 0xdeadbeef":       "PRIME = 0x100000001b3; MASK = 0xdeadbeef",
		`self.assertEqual(units.duration(90), "1m 30s")`: `self.assertEqual(units.duration(90), "1m 30s")`,
		"x = 1.5 * scale":     "x = 1.5 * scale",
		"2021-05-15 02:13:18": "2021-05-15 02:13:18",
	} {
		if got := DefaultNormaliser().Rewrite(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
	if got := new(Normaliser).Rewrite("in 0.5s"); got != "in 0.5s" {
		t.Errorf("an empty normaliser made %q", got)
	}
	if _, err := NewNormaliser([]Rule{{"(", ""}}); err == nil {
		t.Error("a broken pattern was accepted")
	}
}
