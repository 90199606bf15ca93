package selfplay

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"io"
	"path"
	"strings"
)

// cacheDirs hold compiled code, tool state, editor state or the history of
// another version control system; any may hold the original of a changed file.
var cacheDirs = wordSet(`
	__pycache__ .pytest_cache .mypy_cache .ruff_cache .hypothesis .tox .nox .eggs .ipynb_checkpoints .cache .idea
	.history .vs htmlcov .gradle .ccls-cache .clangd .parcel-cache .nyc_output .pytype .ropeproject .turbo .next
	.svelte-kit .stack-work .bloop .metals .dart_tool .jest-cache lcov-report
	.hg .svn .bzr CVS _darcs .jj .pijul`)

// cacheFiles are the same as single files.
var cacheFiles = wordSet(`
	.DS_Store .coverage .eslintcache .fslckout _FOSSIL_ .bash_history .python_history .node_repl_history .viminfo
	.lesshst GTAGS GRTAGS GPATH cscope.out cscope.in.out cscope.po.out`)

// isCache reports whether a path is compiled code, a tool's cache or an
// editor's file, by its name alone.
func isCache(name string) bool {
	for elem := range strings.SplitSeq(name, "/") {
		if cacheDirs[elem] || strings.HasSuffix(elem, ".egg-info") {
			return true
		}
	}
	base := path.Base(name)
	for _, suffix := range []string{".pyc", ".pyo", ".swp", ".swo", ".swn", "~", ".tsbuildinfo"} {
		if strings.HasSuffix(base, suffix) {
			return true
		}
	}
	return cacheFiles[base] || strings.HasPrefix(base, ".#") ||
		strings.HasPrefix(base, "#") && strings.HasSuffix(base, "#")
}

// buildDirs may hold built, installed or saved copies of the code.
var buildDirs = wordSet("build dist out target _build site-packages backup backups bak old orig")

// compiledSuffixes are what a compiler makes of a source of the same name.
var compiledSuffixes = wordSet(".o .obj .lo .a .class .gcda .gcno .map .hi .beam .cmo .cmx .rlib")

// backupSuffixes are put behind a file's name by editors, patch and people.
var backupSuffixes = strings.Fields(".orig .bak .old .save .backup .rej .tmp .copy .1")

// answers is what the paths that an overlay changes were in the snapshot.
type answers struct {
	contents map[string]bool // whole files
	lines    [][]byte        // lines that are gone, long enough to tell something
	stems    map[string]bool // paths without their extension
	backups  map[string]bool // paths of backups
}

// minAnswerLine is the length below which a line says nothing.
const minAnswerLine = 10

func (r *Repo) answersOf(o overlay) (answers, error) {
	a := answers{contents: map[string]bool{}, stems: map[string]bool{}, backups: map[string]bool{}}
	for name, now := range o {
		was, err := r.lookup(nil, name)
		if err != nil {
			return a, err
		}
		if was == nil {
			continue
		}
		if len(was.data) > 0 {
			a.contents[string(was.data)] = true
		}
		a.stems[strings.TrimSuffix(path.Base(name), path.Ext(name))] = true
		for _, suffix := range backupSuffixes {
			a.backups[name+suffix] = true
		}
		var left []byte
		if now != nil {
			left = now.data
		}
		for line := range bytes.Lines(was.data) {
			if line = bytes.TrimSpace(line); len(line) >= minAnswerLine && !bytes.Contains(left, line) {
				a.lines = append(a.lines, line)
			}
		}
	}
	return a, nil
}

// tell reports whether data holds the content, or a line, of an answer.
func (a answers) tell(data []byte) bool {
	if a.contents[string(data)] {
		return true
	}
	for _, line := range a.lines {
		if bytes.Contains(data, line) {
			return true
		}
	}
	return false
}

// leaks lists the files of the snapshot that a solver's tree of o must not
// contain: caches, histories, backups of the files that o changes, what was
// compiled of them, archives and bundles that hold them, patches that tell what
// is gone, and the same in folders for built or saved code. The repository's own
// sources stay, even where one repeats a line of another.
func (r *Repo) leaks(o overlay) (map[string]bool, error) {
	a, err := r.answersOf(o)
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for name := range r.base {
		if _, changed := o[name]; changed {
			continue
		}
		base, ext := path.Base(name), path.Ext(name)
		built := inFolder(name, buildDirs)
		switch {
		case isCache(name), a.backups[name],
			compiledSuffixes[ext] && a.stems[strings.TrimSuffix(base, ext)],
			built && ext == ".map":
			found[name] = true
			continue
		}
		archive := archiveOf(base)
		patch := ext == ".patch" || ext == ".diff" || ext == ".rej"
		index := strings.EqualFold(base, "tags") || base == ".tags"
		if !built && archive == notArchive && !patch && !index && ext != ".bundle" {
			continue
		}
		f, err := r.lookup(nil, name)
		if err != nil {
			return nil, err
		}
		if f == nil {
			continue
		}
		switch {
		case archive != notArchive:
			tells, read := archiveTells(archive, f.data, a)
			found[name] = tells || !read && built
		case ext == ".bundle":
			found[name] = bytes.HasPrefix(f.data, []byte("# v2 git bundle")) || bytes.HasPrefix(f.data, []byte("# v3 git bundle"))
		default:
			found[name] = a.tell(f.data)
		}
	}
	return found, nil
}

type archiveKind int

const (
	notArchive archiveKind = iota
	zipArchive
	tarArchive
	tarGzip
	tarBzip2
	oneGzip
	unreadable // compressed in a way that is not looked into
)

func archiveOf(base string) archiveKind {
	for _, k := range []struct {
		kind     archiveKind
		suffixes string
	}{
		{zipArchive, ".zip .whl .egg .jar .war .nupkg .vsix .xpi"}, {tarGzip, ".tar.gz .tgz .crate .gem"}, {tarBzip2, ".tar.bz2 .tbz2"},
		{tarArchive, ".tar"}, {unreadable, ".tar.xz .txz .tar.zst .7z .rar .xz .zst"}, {oneGzip, ".gz"},
	} {
		for suffix := range strings.FieldsSeq(k.suffixes) {
			if strings.HasSuffix(base, suffix) {
				return k.kind
			}
		}
	}
	return notArchive
}

// maxArchiveBytes bounds what is read out of one archive.
const maxArchiveBytes = 64 << 20

// archiveTells reports whether a member of an archive holds an answer, and
// whether the archive could be read.
func archiveTells(kind archiveKind, data []byte, a answers) (tells, read bool) {
	in, left := io.Reader(bytes.NewReader(data)), int64(maxArchiveBytes)
	var err error
	// member looks at one file and reports whether to go on.
	member := func(r io.Reader) bool {
		content, e := io.ReadAll(io.LimitReader(r, left+1))
		if left -= int64(len(content)); e != nil || left < 0 {
			err = io.ErrUnexpectedEOF
			return false
		}
		tells = a.tell(content)
		return !tells
	}
	switch kind {
	case unreadable:
		return false, false
	case zipArchive:
		z, e := zip.NewReader(bytes.NewReader(data), int64(len(data)))
		if e != nil {
			return false, false
		}
		for _, f := range z.File {
			r, e := f.Open()
			if e != nil {
				return tells, false
			}
			more := member(r)
			r.Close()
			if !more {
				break
			}
		}
		return tells, err == nil
	case tarGzip, oneGzip:
		if in, err = gzip.NewReader(in); err != nil {
			return false, false
		}
	case tarBzip2:
		in = bzip2.NewReader(in)
	}
	in = io.LimitReader(in, 2*maxArchiveBytes) // a reader of tar skips what is not asked for
	if kind == oneGzip {
		member(in)
		return tells, err == nil
	}
	t := tar.NewReader(in)
	for {
		_, e := t.Next()
		if e == io.EOF {
			return tells, true
		}
		if e != nil {
			return tells, false
		}
		if !member(t) {
			return tells, err == nil
		}
	}
}
