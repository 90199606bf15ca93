package selfplay

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const pySource = `import os


class Box:
    """A box."""

    def size(self, *,
             unit="cm"):
        """Say
        how big."""
        if unit == "cm":
            return 1
        elif unit in (
            "m", "km",
        ):
            return 2
        else:
            text = "("
        # a remark
        for i in range(3):
            text += str(i)
            continue
        return text


def last():
    return 1
`

const goSource = `package p

func Sum(xs []int) (total int) {
	for _, x := range xs {
		if x < 0 {
			continue
		} else {
			total += x
		}
	}
	return total
}

func (b *Box) Name() string { return b.name }

func Long(
	a int,
) int {
	a++
	return call(
		a,
	)
}
`

func texts(lines []string, list []removal) []string {
	var all []string
	for _, r := range list {
		s := strings.Join(lines[r.start:r.end], "\n")
		if r.with != nil {
			s += " -> " + strings.TrimSpace(strings.Join(r.with, "\n"))
		}
		all = append(all, strings.TrimSpace(s))
	}
	return all
}

func TestRemovalsByIndentation(t *testing.T) {
	r, err := PythonRecipe().compile()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(pySource, "\n")
	fs := r.functions(lines)
	if len(fs) != 2 || fs[0].name != "size" || fs[0].start != 6 || fs[0].body != 8 || fs[0].end != 23 || fs[1].name != "last" {
		t.Fatalf("functions %+v", fs)
	}
	got := texts(lines, r.removals(lines, fs[0], 3))
	for _, want := range []string{
		"return 1 -> pass",
		"return 2 -> pass",
		`text = "(" -> pass`,
		"text += str(i)",
		"continue",
		"text += str(i)\n            continue -> pass",
		"for i in range(3):\n            text += str(i)\n            continue",
		"return text",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no removal of %q among\n%s", want, strings.Join(got, "\n---\n"))
		}
	}
	for _, r := range got {
		if strings.Contains(r, `"""`) || strings.HasPrefix(r, "else") || strings.HasPrefix(r, "elif") || strings.Contains(r, "remark") && !strings.Contains(r, "for") {
			t.Errorf("removal of %q", r)
		}
	}
	if all := r.removals(lines, fs[1], 3); len(all) != 0 {
		t.Errorf("removals would empty a function: %q", texts(lines, all))
	}
}

func TestRemovalsByBrackets(t *testing.T) {
	r, err := Recipe{Name: "go", Source: `\.go$`, Tests: `_test\.go$`, Function: `^func (?:\([^)]*\) )?(\w+)\(`}.compile()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(goSource, "\n")
	fs := r.functions(lines)
	var names []string
	for _, f := range fs {
		names = append(names, f.name)
	}
	if !slices.Contains(names, "Sum") || !slices.Contains(names, "Long") {
		t.Fatalf("functions %v", names)
	}
	got := texts(lines, r.removals(lines, fs[0], 7))
	for _, want := range []string{"return total", "continue", "total += x", "if x < 0 {\n\t\t\tcontinue\n\t\t} else {\n\t\t\ttotal += x\n\t\t}"} {
		if !slices.Contains(got, want) {
			t.Errorf("no removal of %q among\n%s", want, strings.Join(got, "\n---\n"))
		}
	}
	for _, s := range got {
		if brackets(strings.ReplaceAll(s, "\n", " ")) != 0 {
			t.Errorf("removal of %q leaves brackets open", s)
		}
	}
	long := fs[slices.Index(names, "Long")]
	if got := texts(lines, r.removals(lines, long, 4)); !slices.Contains(got, "return call(\n\t\ta,\n\t)") || !slices.Contains(got, "a++") {
		t.Errorf("removals of Long: %q", got)
	}
}

// Any change of lines can be written as one edit, and the edit makes that change.
func TestASpliceIsTheChange(t *testing.T) {
	line := rapid.SampledFrom([]string{"a", "b", "  c", "d = 1", ""})
	rapid.Check(t, func(rt *rapid.T) {
		lines := rapid.SliceOfN(line, 1, 12).Draw(rt, "lines")
		start := rapid.IntRange(0, len(lines)).Draw(rt, "start")
		end := rapid.IntRange(start, len(lines)).Draw(rt, "end")
		with := rapid.SliceOfN(line, 0, 3).Draw(rt, "with")
		edit, ok := uniqueSplice(lines, start, end, with, len(lines))
		if !ok {
			if occurrences(lines, lines) == 1 && strings.TrimSpace(strings.Join(lines, "")) != "" {
				rt.Fatalf("no splice, though the whole text is unique")
			}
			return
		}
		// An empty replacement means no line, not an empty one: such an edit is not made.
		if len(edit.new) > 0 && strings.Join(edit.new, "\n") == "" {
			return
		}
		want := strings.Join(slices.Concat(lines[:start], with, lines[end:]), "\n")
		got, _, err := replaceOnce(strings.Join(lines, "\n"), strings.Join(edit.old, "\n"), strings.Join(edit.new, "\n"))
		if err != nil {
			rt.Fatalf("edit %q: %v", edit, err)
		}
		if strings.TrimRight(got, "\n") != strings.TrimRight(want, "\n") {
			rt.Fatalf("edit %q made %q, want %q", edit, got, want)
		}
	})
}

func TestChangedRegion(t *testing.T) {
	for _, c := range []struct{ from, to, gone, with string }{
		{"a b c d", "a c d", "b", ""},
		{"a c d", "a b c d", "", "b"},
		{"a a a", "a a", "a", ""},
		{"a b", "x y", "a b", "x y"},
		{"a", "a", "", ""},
	} {
		from, to := strings.Fields(c.from), strings.Fields(c.to)
		s, e, with := changedRegion(from, to)
		if strings.Join(from[s:e], " ") != c.gone || strings.Join(with, " ") != c.with ||
			!slices.Equal(slices.Concat(from[:s], with, from[e:]), to) {
			t.Errorf("%s to %s: lines [%d,%d) become %q", c.from, c.to, s, e, with)
		}
	}
}

func FuzzSubmittedPaths(f *testing.F) {
	f.Add("a\nb\nc\nd\ne")
	f.Add("/etc/passwd\n../x\n.git/config\nd\ne")
	f.Add("/workspace/../etc/a\nb\nc\nd\ne")
	f.Fuzz(func(t *testing.T, body string) {
		paths, err := submittedPaths(body)
		if err != nil {
			return
		}
		for _, p := range paths {
			if p == "" || strings.HasPrefix(p, "/") || p == ".." || strings.HasPrefix(p, "../") || strings.Contains(p, "/../") || strings.ContainsAny(p, "\n\x00") {
				t.Errorf("%q gives the path %q", body, p)
			}
		}
	})
}
