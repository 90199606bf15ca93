package selfplay

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/bluekeyes/go-gitdiff/gitdiff"
)

// Limits of a patch.
const (
	maxPatchBytes  = 1 << 20
	maxPatchFiles  = 500
	maxBinaryBytes = 64 << 10
	// maxPatchedBytes bounds all files together that a patch reads and writes: a
	// few bytes of it can copy a large file, or a delta repeat it.
	maxPatchedBytes = 32 << 20
)

// A PatchError says why a patch cannot be used. It is an outcome of whoever
// wrote the patch, never of the infrastructure.
type PatchError struct{ Reason string }

func (e *PatchError) Error() string { return "patch: " + e.Reason }

func patchErrorf(format string, args ...any) error {
	return &PatchError{fmt.Sprintf(format, args...)}
}

// Patch is a parsed git diff.
type Patch struct {
	files []*gitdiff.File
}

// ParsePatch parses a git diff (or a plain unified diff) and refuses, with a
// *PatchError, what could reach outside a tree or is no patch at all: absolute
// paths, "..", .git, links, submodules, large binaries, hunks without line
// numbers, nothing to apply. Wrong hunk lengths and a missing final newline
// are forgiven.
func ParsePatch(data []byte) (*Patch, error) {
	p, err := parsePatch(data)
	if err != nil {
		return nil, err
	}
	if len(p.files) == 0 {
		return nil, patchErrorf("no changed file in it")
	}
	for _, f := range p.files {
		if why := refuseFile(f); why != "" {
			return nil, &PatchError{why}
		}
	}
	return p, nil
}

// parsePatch parses without judging the files.
func parsePatch(data []byte) (*Patch, error) {
	if len(data) > maxPatchBytes {
		return nil, patchErrorf("%d bytes, more than %d", len(data), maxPatchBytes)
	}
	text, err := mendPatch(data)
	if err != nil {
		return nil, err
	}
	files, _, err := gitdiff.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, patchErrorf("%v", err)
	}
	if len(files) > maxPatchFiles {
		return nil, patchErrorf("%d files, more than %d", len(files), maxPatchFiles)
	}
	for _, f := range files {
		// The sides of a plain diff have no modes; git's have.
		if f.IsNew && f.NewMode == 0 {
			f.NewMode = 0o100644
		}
		if f.IsDelete && f.OldMode == 0 {
			f.OldMode = 0o100644
		}
		f.ReverseBinaryFragment = nil // git would inflate it, and nothing uses it
		if !f.IsBinary {
			f.OldOIDPrefix, f.NewOIDPrefix = "", ""
		}
	}
	return &Patch{files}, nil
}

// refuseFile says why one file of a patch may not be applied, "" when it may.
func refuseFile(f *gitdiff.File) string {
	for _, name := range filePaths(f) {
		if why := unsafePath(name); why != "" {
			return fmt.Sprintf("path %q %s", name, why)
		}
	}
	name := filePaths(f)[0]
	for _, mode := range []os.FileMode{f.OldMode, f.NewMode} {
		switch mode {
		case 0, 0o100644, 0o100755:
		case 0o120000:
			return fmt.Sprintf("%s is a symbolic link", name)
		case 0o160000:
			return fmt.Sprintf("%s is a submodule", name)
		default:
			return fmt.Sprintf("%s has mode %o", name, mode)
		}
	}
	if f.IsBinary {
		switch b := f.BinaryFragment; {
		case b == nil:
			return fmt.Sprintf("%s is binary and its content is missing", name)
		case b.Size > maxBinaryBytes || len(b.RawData) > maxBinaryBytes:
			return fmt.Sprintf("%s is binary and over %d bytes", name, maxBinaryBytes)
		case deltaSize(b) > maxPatchedBytes:
			return fmt.Sprintf("%s is binary and would become larger than %d bytes", name, maxPatchedBytes)
		}
		return ""
	}
	newMode := f.OldMode != 0 && f.NewMode != 0 && f.OldMode != f.NewMode
	if len(f.TextFragments) == 0 && !f.IsNew && !f.IsDelete && !f.IsRename && !f.IsCopy && !newMode {
		return fmt.Sprintf("%s has no hunk", name)
	}
	return ""
}

// deltaSize is the size of the file that a binary delta makes, as its own
// header has it after the size of its source; 0 for a literal and for what git
// will refuse. The header is two little-endian base-128 numbers
// (gitformat-pack, "Deltified representation").
func deltaSize(b *gitdiff.BinaryFragment) uint64 {
	if b.Method != gitdiff.BinaryPatchDelta {
		return 0
	}
	z, err := zlib.NewReader(bytes.NewReader(b.RawData))
	if err != nil {
		return 0
	}
	in := bufio.NewReader(z)
	if _, err := binary.ReadUvarint(in); err != nil {
		return 0
	}
	n, err := binary.ReadUvarint(in)
	if err != nil {
		return 0
	}
	return n
}

// filePaths are the one or two paths that a file of a patch names.
func filePaths(f *gitdiff.File) []string {
	switch {
	case f.OldName == "" || f.OldName == f.NewName:
		return []string{f.NewName}
	case f.NewName == "":
		return []string{f.OldName}
	}
	return []string{f.OldName, f.NewName}
}

// unsafePath says why a slash-separated relative path is refused, "" when it is not.
func unsafePath(name string) string {
	if name == "" {
		return "is empty"
	}
	if len(name) > 1024 {
		return "is too long"
	}
	if path.IsAbs(name) {
		return "is absolute"
	}
	for _, c := range []byte(name) {
		if c < 0x20 || c == 0x7f {
			return "contains a control character"
		}
	}
	for elem := range strings.SplitSeq(name, "/") {
		// Case and trailing dots are folded by some file systems.
		folded := strings.ToLower(strings.TrimRight(elem, ". "))
		switch {
		case elem == "..":
			return "leaves the tree"
		case elem == "" || elem == ".":
			return "is not clean"
		case folded == ".git" || folded == "git~1":
			return "is inside .git"
		case len(elem) > 255:
			return "is too long"
		}
	}
	return ""
}

// Paths lists every path the patch touches, sorted; both of a rename.
func (p *Patch) Paths() []string {
	var names []string
	for _, f := range p.files {
		names = append(names, filePaths(f)...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Split returns one patch per file, in the order of the patch.
func (p *Patch) Split() []*Patch {
	split := make([]*Patch, len(p.files))
	for i, f := range p.files {
		split[i] = &Patch{[]*gitdiff.File{f}}
	}
	return split
}

// numbered is the patch with the numbers of its paths in a list for names.
func (p *Patch) numbered(paths []string) *Patch {
	rename := func(name string) string {
		if i, ok := slices.BinarySearch(paths, name); ok {
			return number(i)
		}
		return name
	}
	n := &Patch{make([]*gitdiff.File, len(p.files))}
	for i, f := range p.files {
		c := *f
		c.OldName, c.NewName = rename(f.OldName), rename(f.NewName)
		n.files[i] = &c
	}
	return n
}

// patchedBytes is an upper bound of what the patch reads and writes, given the
// sizes of the files that are there.
func (p *Patch) patchedBytes(sizes map[string]uint64) uint64 {
	total := uint64(maxPatchBytes)
	for _, f := range p.files {
		total += sizes[filePaths(f)[0]]
		if f.BinaryFragment != nil {
			total += deltaSize(f.BinaryFragment)
		}
	}
	return total
}

// Bytes is the patch as a git diff with exact hunk lengths.
func (p *Patch) Bytes() []byte {
	var b bytes.Buffer
	for _, f := range p.files {
		b.WriteString(f.String())
	}
	return b.Bytes()
}

// ID identifies the change: like git patch-id --stable, it depends neither on
// line numbers, white space nor the order of files. 16 hexadecimal digits.
func (p *Patch) ID() string {
	sums := make([]string, 0, len(p.files))
	for _, f := range p.files {
		h := sha256.New()
		fmt.Fprintf(h, "%q %q %v %v\n", f.OldName, f.NewName, f.IsNew, f.IsDelete)
		if f.OldMode != 0 && f.NewMode != 0 && f.OldMode != f.NewMode {
			fmt.Fprintf(h, "mode %o %o\n", f.OldMode, f.NewMode)
		}
		if f.BinaryFragment != nil {
			fmt.Fprintf(h, "%s\n", f.BinaryFragment)
		}
		for _, frag := range f.TextFragments {
			for _, l := range frag.Lines {
				fmt.Fprintf(h, "%s%s\n", strings.TrimSpace(l.Op.String()), strings.Join(strings.Fields(l.Line), ""))
			}
		}
		sums = append(sums, string(h.Sum(nil)))
	}
	slices.Sort(sums)
	sum := sha256.Sum256([]byte(strings.Join(sums, "")))
	return hex.EncodeToString(sum[:])[:16]
}

var hunkHeader = regexp.MustCompile(`^@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@(.*)\n$`)

// mendPatch makes what a model wrote strict: hunk lengths are counted anew,
// blank lines inside a hunk get their space, plain diffs get git headers, and
// the last line its newline. A hunk header without line numbers is refused,
// since parsers skip it silently.
func mendPatch(data []byte) ([]byte, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, nil
	}
	if !bytes.HasSuffix(data, []byte("\n")) {
		data = append(slices.Clip(data), '\n')
	}
	if bytes.Count(data, []byte("\n")) == bytes.Count(data, []byte("\r\n")) {
		data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	}
	lines := strings.SplitAfter(string(data), "\n")
	lines = lines[:len(lines)-1]

	var out strings.Builder
	inGitHeader := false
	for i := 0; i < len(lines); {
		line := lines[i]
		switch {
		case strings.HasPrefix(line, "diff --git "):
			inGitHeader = true
		case strings.HasPrefix(line, "@@"):
			m := hunkHeader.FindStringSubmatch(line)
			if m == nil {
				return nil, patchErrorf("line %d: hunk header without line numbers: %.60q", i+1, line)
			}
			body := hunkBody(lines[i+1:], count(m[2]), count(m[4]))
			writeHunk(&out, m, body)
			inGitHeader = false
			i += 1 + len(body)
			continue
		case plainHeader(lines[i:]):
			if !inGitHeader {
				writeGitHeader(&out, line, lines[i+1])
				i += 2
				continue
			}
		}
		out.WriteString(line)
		i++
	}
	return []byte(out.String()), nil
}

func count(s string) int {
	if s == "" {
		return 1
	}
	n, _ := strconv.Atoi(s) // the pattern admits at most nine digits
	return n
}

// plainHeader reports whether lines start with the ---, +++, @@ of a file.
func plainHeader(lines []string) bool {
	return len(lines) > 2 && strings.HasPrefix(lines[0], "--- ") &&
		strings.HasPrefix(lines[1], "+++ ") && strings.HasPrefix(lines[2], "@@")
}

// hunkBody returns the lines of a hunk that declares old and new lines. The
// declared lengths count when the hunk can end there, else everything that
// looks like a hunk's line belongs to it, except blank lines at its end.
func hunkBody(lines []string, oldLines, newLines int) []string {
	isBody := func(i int) bool {
		return i < len(lines) && strings.ContainsRune(" +-\\\n", rune(lines[i][0])) && !plainHeader(lines[i:])
	}
	end, o, n := 0, 0, 0
	for isBody(end) {
		if o == oldLines && n == newLines && lines[end][0] != '\\' {
			if next := lines[end]; next == "\n" || next == "-- \n" {
				return lines[:end]
			}
		}
		switch lines[end][0] {
		case ' ', '\n':
			o, n = o+1, n+1
		case '-':
			o++
		case '+':
			n++
		}
		end++
	}
	for end > 0 && lines[end-1] == "\n" && (o != oldLines || n != newLines) {
		end, o, n = end-1, o-1, n-1
	}
	return lines[:end]
}

// writeHunk writes a hunk under a header m with the lengths of its body.
func writeHunk(out *strings.Builder, m, body []string) {
	o, n := 0, 0
	for _, l := range body {
		switch l[0] {
		case ' ', '\n':
			o, n = o+1, n+1
		case '-':
			o++
		case '+':
			n++
		}
	}
	fmt.Fprintf(out, "@@ -%s,%d +%s,%d @@%s\n", m[1], o, m[3], n, m[5])
	for _, l := range body {
		if l == "\n" {
			out.WriteByte(' ')
		}
		out.WriteString(l)
	}
}

// writeGitHeader turns the --- and +++ lines of a plain diff into git's header.
func writeGitHeader(out *strings.Builder, oldLine, newLine string) {
	name := func(line, prefix string) string {
		line, _, _ = strings.Cut(strings.TrimSuffix(line[4:], "\n"), "\t")
		return strings.TrimPrefix(strings.TrimSpace(line), prefix)
	}
	o, n := name(oldLine, "a/"), name(newLine, "b/")
	switch {
	case o == "/dev/null":
		fmt.Fprintf(out, "diff --git a/%s b/%s\nnew file mode 100644\n--- /dev/null\n+++ b/%s\n", n, n, n)
	case n == "/dev/null":
		fmt.Fprintf(out, "diff --git a/%s b/%s\ndeleted file mode 100644\n--- a/%s\n+++ /dev/null\n", o, o, o)
	default:
		fmt.Fprintf(out, "diff --git a/%s b/%s\n--- a/%s\n+++ b/%s\n", n, n, n, n)
	}
}
