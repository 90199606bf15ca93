package selfplay

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/ssr-go/ssr/internal/atomicfile"
)

// File names of an artifact's folder.
const (
	TestScriptName = "test_script.sh"
	TestFilesName  = "test_files.txt"
	TestParserName = "test_parser.py"
	BugInjectName  = "bug_inject.diff"
	TestWeakenName = "test_weaken.diff"
	ReportName     = "report.json"
)

// part is one file of an artifact: its name, the other name that the paper's
// prompts use for it, and the most bytes it may have.
type part struct {
	name, alias string
	limit       int64
	field       func(*Artifact) *[]byte
}

// The script's limit keeps it below what Linux passes as one argument (128 KiB).
var parts = []part{
	{TestScriptName, "", 64 << 10, func(a *Artifact) *[]byte { return &a.TestScript }},
	{TestFilesName, "", 64 << 10, func(a *Artifact) *[]byte { return &a.TestFiles }},
	{TestParserName, "parse_test_output.py", 256 << 10, func(a *Artifact) *[]byte { return &a.TestParser }},
	{BugInjectName, "bug_patch.diff", maxPatchBytes, func(a *Artifact) *[]byte { return &a.BugInject }},
	{TestWeakenName, "test_patch.diff", maxPatchBytes, func(a *Artifact) *[]byte { return &a.TestWeaken }},
}

// PartNames lists the five files of an artifact in their order.
func PartNames() []string {
	names := make([]string, len(parts))
	for i, p := range parts {
		names[i] = p.name
	}
	return names
}

// An ArtifactError says which file of an artifact cannot be used, and why. It
// is an outcome of whoever wrote the artifact, never of the infrastructure.
type ArtifactError struct {
	File   string
	Reason string
}

func (e *ArtifactError) Error() string { return fmt.Sprintf("artifact: %s: %s", e.File, e.Reason) }

// ArtifactFrom builds an artifact from read, which returns a file's content by
// its name or an error wrapping fs.ErrNotExist; the paper's other names are
// tried when the usual one is absent. A file that is missing or over its limit
// is an *ArtifactError; any other error of read is returned as it is.
func ArtifactFrom(read func(name string) ([]byte, error)) (Artifact, error) {
	var a Artifact
	for _, p := range parts {
		data, err := read(p.name)
		if errors.Is(err, fs.ErrNotExist) && p.alias != "" {
			data, err = read(p.alias)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return Artifact{}, &ArtifactError{p.name, "missing"}
		}
		if err != nil {
			return Artifact{}, err
		}
		if int64(len(data)) > p.limit {
			return Artifact{}, &ArtifactError{p.name, fmt.Sprintf("%d bytes, more than %d", len(data), p.limit)}
		}
		*p.field(&a) = data
	}
	return a, nil
}

// LoadArtifact reads an artifact's folder. Only regular files inside the folder
// are read; a link that leaves it, a pipe or a device is an *ArtifactError.
func LoadArtifact(dir string) (Artifact, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Artifact{}, fmt.Errorf("open artifact folder: %w", err)
	}
	defer root.Close()
	return ArtifactFrom(func(name string) ([]byte, error) {
		return readRegular(root, name, maxPatchBytes)
	})
}

// readRegular reads at most limit+1 bytes of a regular file below root.
func readRegular(root *os.Root, name string, limit int64) ([]byte, error) {
	// Without O_NONBLOCK a pipe in the folder would block the open for ever.
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, &ArtifactError{name, err.Error()}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("stat %s: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, &ArtifactError{name, "not a regular file"}
	}
	return io.ReadAll(io.LimitReader(f, limit+1))
}

// Save writes the artifact and its report as a new folder, all or nothing. It
// fails with fs.ErrExist when dir exists already.
func (a Artifact) Save(dir string, report Report) error {
	return saveFolder(dir, a.files(report))
}

// files is the content of the artifact's folder.
func (a Artifact) files(report Report) map[string][]byte {
	files := map[string][]byte{ReportName: reportJSON(report)}
	for _, p := range parts {
		files[p.name] = *p.field(&a)
	}
	return files
}

// SaveReport writes report.json into an artifact's folder, replacing an older one atomically.
func SaveReport(dir string, report Report) error {
	if err := atomicfile.WriteBytes(filepath.Join(dir, ReportName), reportJSON(report)); err != nil {
		return fmt.Errorf("save report in %s: %w", dir, err)
	}
	return nil
}

// LoadReport reads an artifact folder's report.json; the error wraps
// fs.ErrNotExist when it has none.
func LoadReport(dir string) (Report, error) {
	var r Report
	root, err := os.OpenRoot(dir)
	if err != nil {
		return r, fmt.Errorf("open artifact folder: %w", err)
	}
	defer root.Close()
	const limit = 16 << 20
	data, err := readRegular(root, ReportName, limit)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, &ArtifactError{ReportName, err.Error()}
	}
	return r, nil
}

func reportJSON(r Report) []byte {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		panic("selfplay: a report always encodes: " + err.Error())
	}
	return append(data, '\n')
}

// saveFolder writes files into a new folder: aside, synced, then renamed.
func saveFolder(dir string, files map[string][]byte) (err error) {
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("save %s: %w", dir, fs.ErrExist)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), tempPrefix)
	if err != nil {
		return fmt.Errorf("save %s: %w", dir, err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return fmt.Errorf("save %s: %w", dir, err)
	}
	for name, data := range files {
		if err := writeSynced(filepath.Join(tmp, name), data); err != nil {
			return fmt.Errorf("save %s: %w", dir, err)
		}
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("save %s: %w", dir, err)
	}
	return atomicfile.SyncDir(filepath.Dir(dir))
}

// tempPrefix marks folders that a crash left half-written.
const tempPrefix = ".tmp-"

func writeSynced(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// ID is a content hash of the artifact: 16 hexadecimal digits.
func (a Artifact) ID() string {
	h := sha256.New()
	for _, p := range parts {
		data := *p.field(&a)
		fmt.Fprintf(h, "%s %d\n", p.name, len(data))
		h.Write(data)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

const maxTestFiles = 1000

// TestFileList parses test_files.txt into clean slash-separated paths, without
// duplicates, in the order given. Blank lines are ignored; a path that is
// absolute, leaves the tree or names .git is an *ArtifactError.
func (a Artifact) TestFileList() ([]string, error) {
	refuse := func(format string, args ...any) ([]string, error) {
		return nil, &ArtifactError{TestFilesName, fmt.Sprintf(format, args...)}
	}
	if !utf8.Valid(a.TestFiles) {
		return refuse("not UTF-8 text")
	}
	var list []string
	seen := map[string]bool{}
	for line := range bytes.Lines(a.TestFiles) {
		name := strings.TrimSpace(string(line))
		if name == "" {
			continue
		}
		if why := unsafePath(strings.TrimPrefix(name, "./")); why != "" {
			return refuse("%q %s", name, why)
		}
		name = path.Clean(name)
		if !seen[name] {
			seen[name] = true
			list = append(list, name)
		}
		if len(list) > maxTestFiles {
			return refuse("more than %d paths", maxTestFiles)
		}
	}
	if len(list) == 0 {
		return refuse("lists no file")
	}
	return list, nil
}
