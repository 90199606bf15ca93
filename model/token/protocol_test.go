package token

import (
	"errors"
	"strings"
	"testing"
)

func TestParseCall(t *testing.T) {
	for _, c := range []struct {
		text string
		want Call
	}{
		{"<tool: bash>\nls -la\n</tool>", Call{"bash", "ls -la"}},
		{"I look.\n\n<tool: bash>\nls\n</tool>\n", Call{"bash", "ls"}},
		{"<tool:bash>ls</tool> done", Call{"bash", "ls"}},
		{"<tool: submit></tool>", Call{"submit", ""}},
		{"<tool: submit>\n</tool>", Call{"submit", ""}},
		{"<tool: bash>\n\necho '<tool: x>'\n\n</tool>", Call{"bash", "\necho '<tool: x>'\n"}},
		{"a < b and <tool: 1 2> <tool: bash>\nx\n</tool>", Call{"bash", "x"}},
	} {
		got, err := ParseCall(c.text)
		if err != nil || got != c.want {
			t.Errorf("%q: %+v, %v, want %+v", c.text, got, err, c.want)
		}
	}
	for _, c := range []struct {
		text string
		kind error
		says string
	}{
		{"", ErrNoCall, "<tool: NAME>"},
		{"I am done.", ErrNoCall, "<tool: NAME>"},
		{"ls</tool>", ErrNoCall, "without an opening"},
		{"<tool: >ls</tool>", ErrNoCall, "malformed"},
		{"<tool: bash", ErrNoCall, "malformed"},
		{"<tool: bash>\nls", ErrUnterminated, "<tool: bash> has no </tool>"},
		{"<tool: bash>\nls\n<tool: submit>\n</tool>", ErrUnterminated, "<tool: submit> begins before <tool: bash>"},
		{"<tool: bash>\nls\n</tool>\n<tool: submit>\n</tool>", ErrTwoCalls, "<tool: bash> and <tool: submit>"},
		{"<tool: bash>\nls\n</tool><tool: submit>", ErrTwoCalls, "<tool: bash> and <tool: submit>"},
	} {
		_, err := ParseCall(c.text)
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: %v, want %v saying %q", c.text, err, c.kind, c.says)
		}
	}
}

func TestParseEdit(t *testing.T) {
	path, search, replace, err := ParseEdit("a/b.py\n<<<<<<< SEARCH\n  x = 1\n\ny\n=======\nz\n>>>>>>> REPLACE")
	if path != "a/b.py" || search != "  x = 1\n\ny" || replace != "z" || err != nil {
		t.Errorf("%q %q %q %v", path, search, replace, err)
	}
	path, search, replace, err = ParseEdit(" f \r\n\n<<<<<<< SEARCH\r\nx\r\n=======\r\n>>>>>>> REPLACE\r\n\n")
	if path != "f" || search != "x\r" || replace != "" || err != nil {
		t.Errorf("%q %q %q %v", path, search, replace, err)
	}
	// A divider may be searched for only outside the block's own frame.
	for body, says := range map[string]string{
		"":   "path; it is empty",
		"\n": "path; it is empty",
		"<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE": "path; it is",
		"f":                                     "no \"<<<<<<< SEARCH\"",
		"f\nx\n<<<<<<< SEARCH":                  "outside the block: \"x\"",
		"f\n<<<<<<< SEARCH\nx":                  "no \"=======\"",
		"f\n<<<<<<< SEARCH\nx\n=======\ny":      "no \">>>>>>> REPLACE\"",
		"f\n<<<<<<< SEARCH\nx\n>>>>>>> REPLACE": "no \"=======\" line before",
		"f\n<<<<<<< SEARCH\n=======\ny\n>>>>>>> REPLACE":                                      "is empty",
		"f\n<<<<<<< SEARCH\nx\n=======\n=======\n>>>>>>> REPLACE":                             "more than one \"=======\"",
		"f\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\nz":                                "outside the block: \"z\"",
		"f\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n<<<<<<< SEARCH\n":                 "more than one \"<<<<<<< SEARCH\"",
		"f\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n>>>>>>> REPLACE":                  "more than one \">>>>>>> REPLACE\"",
		"f\x00\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE":                               "NUL",
		"f\n>>>>>>> REPLACE\n<<<<<<< SEARCH\nx\n=======\ny":                                   "no \"=======\" line before",
		"f\n" + strings.Repeat("é", 200) + "\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE": "éé…",
	} {
		if _, _, _, err := ParseEdit(body); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want an error saying %q", body, err, says)
		}
	}
}

func TestParseCreate(t *testing.T) {
	for _, c := range []struct{ body, path, content string }{
		{"a.sh\n#!/bin/sh\necho\n", "a.sh", "#!/bin/sh\necho\n"},
		{"a.sh\nx", "a.sh", "x\n"},
		{"a.sh", "a.sh", ""},
		{"a.sh\n\nx\n\n", "a.sh", "\nx\n\n"},
	} {
		path, content, err := ParseCreate(c.body)
		if path != c.path || content != c.content || err != nil {
			t.Errorf("%q: %q %q %v", c.body, path, content, err)
		}
	}
	if _, _, err := ParseCreate("\nx"); err == nil {
		t.Error("no path is accepted")
	}
}

func FuzzParseCall(f *testing.F) {
	for _, s := range []string{"<tool: bash>\nls\n</tool>", "<tool: a><tool: b></tool>", "</tool><tool:", "x\n<tool: submit></tool>\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseCall(s)
		if err != nil {
			if !errors.Is(err, ErrNoCall) && !errors.Is(err, ErrTwoCalls) && !errors.Is(err, ErrUnterminated) {
				t.Errorf("%q: untyped error %v", s, err)
			}
			return
		}
		// What was understood, written again, is understood the same.
		if again, err := ParseCall(Plain.FormatCall(c)); err != nil || again != c {
			t.Errorf("%q: %+v, formatted and parsed: %+v, %v", s, c, again, err)
		}
	})
}

func FuzzParseEdit(f *testing.F) {
	f.Add("f\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE")
	f.Add("f\n<<<<<<< SEARCH\n\n\n=======\n>>>>>>> REPLACE\n")
	f.Fuzz(func(t *testing.T, s string) {
		if path, search, replace, err := ParseEdit(s); err == nil {
			p, q, r, err := ParseEdit(FormatEdit(path, search, replace))
			if err != nil || p != path || q != search || r != replace {
				t.Errorf("%q: %q %q %q, formatted and parsed: %q %q %q %v", s, path, search, replace, p, q, r, err)
			}
		}
		if path, content, err := ParseCreate(s); err == nil {
			if p, c, err := ParseCreate(FormatCreate(path, content)); err != nil || p != path || c != content {
				t.Errorf("%q: %q %q, formatted and parsed: %q %q %v", s, path, content, p, c, err)
			}
		}
	})
}
