package sandbox

import (
	"bytes"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sort"
	"strings"
	"unicode/utf8"
)

// Refusal is a change that a patch cannot carry, and why.
type Refusal struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// Diff writes changes against the folder original as a patch in git's format,
// which "git apply" accepts: new, deleted and modified text files, execute
// bits and symbolic links. Binary files, skipped entries and paths that leave
// the tree or enter a .git are refused. No program is run and no configuration
// or attribute is read. The patch is empty when nothing is left to say.
func Diff(original string, changes []Change) (patch []byte, refused []Refusal, err error) {
	root, err := os.OpenRoot(original)
	if err != nil {
		return nil, nil, fmt.Errorf("diff: %w", err)
	}
	defer root.Close()
	changes = append([]Change(nil), changes...)
	sort.Slice(changes, func(i, j int) bool { return changes[i].Path < changes[j].Path })
	var out bytes.Buffer
	for _, c := range changes {
		reason := unpatchable(c)
		if reason == "" {
			var old *blob
			if old, err = readOriginal(root, c.Path); err != nil {
				return nil, nil, fmt.Errorf("diff %s: %w", c.Path, err)
			}
			reason = writeChange(&out, c, old)
		}
		if reason != "" {
			refused = append(refused, Refusal{c.Path, reason})
		}
	}
	return out.Bytes(), refused, nil
}

// blob is one side of a change, as git stores it.
type blob struct {
	mode string // "100644", "100755" or "120000"
	data []byte
}

func (b *blob) id() string {
	if b == nil {
		return strings.Repeat("0", 2*sha1.Size)
	}
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", len(b.data))
	h.Write(b.data)
	return fmt.Sprintf("%x", h.Sum(nil))
}

// binary is git's rule: a NUL among the first 8000 bytes.
func (b *blob) binary() bool {
	return b != nil && bytes.IndexByte(b.data[:min(len(b.data), 8000)], 0) >= 0
}

func gitMode(mode uint32) string {
	switch {
	case mode&uint32(fs.ModeSymlink) != 0:
		return "120000"
	case mode&0o100 != 0:
		return "100755"
	}
	return "100644"
}

func unpatchable(c Change) string {
	if c.Skipped != "" {
		return c.Skipped
	}
	if c.Path == "" || c.Path == "." || path.IsAbs(c.Path) || path.Clean(c.Path) != c.Path ||
		strings.HasPrefix(c.Path+"/", "../") || strings.IndexByte(c.Path, 0) >= 0 {
		return "not a path inside the tree"
	}
	for part := range strings.SplitSeq(c.Path, "/") {
		if strings.EqualFold(part, ".git") {
			return "inside .git"
		}
	}
	return ""
}

// readOriginal returns nil for a path that the original does not hold as a file or link.
func readOriginal(root *os.Root, name string) (*blob, error) {
	info, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist), isNotDir(err):
		return nil, nil
	case err != nil:
		return nil, err
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := root.Readlink(name)
		return &blob{"120000", []byte(target)}, err
	case !info.Mode().IsRegular():
		return nil, nil
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	return &blob{gitMode(uint32(info.Mode())), data}, err
}

// writeChange appends one file's part of the patch, or says why it cannot.
func writeChange(out *bytes.Buffer, c Change, old *blob) (refused string) {
	var now *blob
	if !c.Deleted {
		now = &blob{gitMode(c.Mode), c.Data}
	}
	switch {
	case old == nil && now == nil:
		return "deleted, but not in the original"
	case old.binary() || now.binary():
		return "binary"
	case old != nil && now != nil && (old.mode == "120000") != (now.mode == "120000"):
		// A file that becomes a link, or the reverse, is two changes.
		writeFile(out, c.Path, old, nil)
		writeFile(out, c.Path, nil, now)
	default:
		writeFile(out, c.Path, old, now)
	}
	return ""
}

func writeFile(out *bytes.Buffer, name string, old, now *blob) {
	same := old != nil && now != nil && bytes.Equal(old.data, now.data)
	if same && old.mode == now.mode {
		return
	}
	fmt.Fprintf(out, "diff --git %s %s\n", quote("a/"+name), quote("b/"+name))
	index := ""
	switch {
	case old == nil:
		fmt.Fprintf(out, "new file mode %s\n", now.mode)
	case now == nil:
		fmt.Fprintf(out, "deleted file mode %s\n", old.mode)
	case old.mode != now.mode:
		fmt.Fprintf(out, "old mode %s\nnew mode %s\n", old.mode, now.mode)
	default:
		index = " " + old.mode
	}
	if same {
		return
	}
	fmt.Fprintf(out, "index %s..%s%s\n", old.id(), now.id(), index)
	var a, b []byte
	from, to := "/dev/null", "/dev/null"
	if old != nil {
		a, from = old.data, label("a/"+name)
	}
	if now != nil {
		b, to = now.data, label("b/"+name)
	}
	if len(a) == 0 && len(b) == 0 {
		return // an empty file has no hunks, and then no names either
	}
	fmt.Fprintf(out, "--- %s\n+++ %s\n", from, to)
	writeHunks(out, splitLines(a), splitLines(b))
}

// label is a name on a --- or +++ line, where a tab ends a name with blanks.
func label(name string) string {
	q := quote(name)
	if q == name && strings.ContainsAny(name, " \t") {
		q += "\t"
	}
	return q
}

// quote writes a name as git does when it holds bytes that would end or garble a line.
func quote(name string) string {
	plain := utf8.ValidString(name)
	for i := 0; plain && i < len(name); i++ {
		c := name[i]
		plain = c >= ' ' && c != 0x7f && c != '"' && c != '\\'
	}
	if plain {
		return name
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c >= 0x7f:
			fmt.Fprintf(&b, `\%03o`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// splitLines cuts text into lines with their newline; the last may lack it.
func splitLines(text []byte) []string {
	lines := strings.SplitAfter(string(text), "\n")
	if n := len(lines); lines[n-1] == "" {
		lines = lines[:n-1]
	}
	return lines
}
