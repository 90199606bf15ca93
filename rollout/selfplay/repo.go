package selfplay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Limits of a plain folder, against a --repo that names a whole disk by mistake.
const (
	maxFolderFiles = 200_000
	maxFolderBytes = 4 << 30
)

// Repo is a snapshot of a user's repository, from which clean trees are made.
// It holds HEAD's tracked files as they are stored (no filters, no end-of-line
// conversion), or every file of a folder that is no git repository. The user's
// folder is never written and no program named by its configuration is run.
// A Repo is safe for concurrent use.
type Repo struct {
	work   string   // private folder: base/, trees/, scratch/, git/
	lock   *os.File // held while work is in use
	head   string   // commit, "" for a plain folder
	format string   // git object format
	base   map[string]entry
	dirs   map[string]bool // every folder of base, "" not included
	sorted []string        // regular files of base
	// outside is findOutside, done once.
	outside func() (map[string]bool, error)

	mu      sync.Mutex
	trees   map[string]*preparedTree
	clock   int64
	patched map[string]patchResult
	// patchedMemory is how many bytes patched holds.
	patchedMemory int
}

// entry is one path of the snapshot.
type entry struct {
	mode fs.FileMode // 0644, 0755, fs.ModeSymlink or fs.ModeDir (a submodule's empty place)
}

// OpenRepo takes the snapshot of dir. Close removes everything prepared from it.
func OpenRepo(ctx context.Context, dir string) (_ *Repo, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	if info, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("open repository: %s is not a folder", dir)
	}
	work, lock, err := workFolder()
	if err != nil {
		return nil, hostError("open repository", err)
	}
	r := &Repo{
		work: work, lock: lock, format: "sha1", base: map[string]entry{}, dirs: map[string]bool{},
		trees: map[string]*preparedTree{}, patched: map[string]patchResult{},
	}
	r.outside = sync.OnceValues(r.findOutside)
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	for _, sub := range []string{"base", "trees", "scratch"} {
		if err := os.Mkdir(filepath.Join(work, sub), 0o755); err != nil {
			return nil, hostError("open repository", err)
		}
	}
	if _, statErr := os.Lstat(filepath.Join(dir, ".git")); statErr == nil {
		err = r.snapshotGit(ctx, dir)
	} else {
		err = r.snapshotFolder(ctx, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", dir, err)
	}
	for name, e := range r.base {
		if e.mode.IsRegular() {
			r.sorted = append(r.sorted, name)
		}
		for d := path.Dir(name); d != "."; d = path.Dir(d) {
			r.dirs[d] = true
		}
	}
	slices.Sort(r.sorted)
	if len(r.sorted) == 0 {
		return nil, fmt.Errorf("snapshot %s: no file in it", dir)
	}
	return r, fixTimes(filepath.Join(work, "base"))
}

// Close removes every prepared tree. Call it after the last sandbox has started.
func (r *Repo) Close() error {
	if err := errors.Join(os.RemoveAll(r.work), r.lock.Close()); err != nil {
		return fmt.Errorf("remove prepared trees: %w", err)
	}
	return nil
}

const (
	workPrefix = "ssr-repo-"
	newPrefix  = "ssr-new-"
	lockName   = "lock"
	// maxNew is far beyond the moment that a folder has newPrefix.
	maxNew = time.Minute
)

// workFolder makes a private folder, with a lock on it that ends with the
// process, and removes those whose processes have ended without Close.
func workFolder() (dir string, lock *os.File, err error) {
	tmp, err := filepath.EvalSymlinks(os.TempDir())
	if err != nil {
		return "", nil, err
	}
	if old, err := filepath.Glob(filepath.Join(tmp, workPrefix+"*")); err == nil {
		for _, dir := range old {
			if lock, err := lockFolder(dir, os.O_RDWR); err == nil {
				os.RemoveAll(dir)
				lock.Close()
			}
		}
	}
	// Only a locked folder gets the name that others may remove at once.
	if old, err := filepath.Glob(filepath.Join(tmp, newPrefix+"*")); err == nil {
		for _, dir := range old {
			if info, err := os.Lstat(dir); err == nil && info.IsDir() && time.Since(info.ModTime()) > maxNew {
				os.RemoveAll(dir)
			}
		}
	}
	fresh, err := os.MkdirTemp(tmp, newPrefix)
	if err != nil {
		return "", nil, err
	}
	if lock, err = lockFolder(fresh, os.O_RDWR|os.O_CREATE); err == nil {
		dir = filepath.Join(tmp, workPrefix+strings.TrimPrefix(filepath.Base(fresh), newPrefix))
		err = os.Rename(fresh, dir)
	}
	if err != nil {
		os.RemoveAll(fresh)
	}
	return dir, lock, err
}

// lockFolder takes a folder's lock; it fails when somebody holds it.
func lockFolder(dir string, flags int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Files lists the snapshot's regular files, sorted.
func (r *Repo) Files() []string { return slices.Clone(r.sorted) }

// Head is the commit of the snapshot, "" when the folder is no git repository.
func (r *Repo) Head() string { return r.head }

// ReadFile returns a regular file of the snapshot; the error wraps
// fs.ErrNotExist when there is none.
func (r *Repo) ReadFile(name string) ([]byte, error) {
	f, err := r.lookup(nil, name)
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return f.data, nil
}

// snapshotGit exports HEAD through a bare repository of our own that borrows
// the user's objects, so that the user's configuration is never in force.
func (r *Repo) snapshotGit(ctx context.Context, dir string) error {
	out, err := runGit(ctx, dir, nil, "rev-parse", "--path-format=absolute", "--git-common-dir", "--show-object-format")
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 2 {
		return fmt.Errorf("git rev-parse answered %q", out)
	}
	common, format := lines[0], lines[1]
	out, err = runGit(ctx, dir, nil, "rev-parse", "--verify", "-q", "HEAD^{commit}")
	if err != nil {
		var ge *gitError
		if errors.As(err, &ge) {
			return fmt.Errorf("the git repository has no commit; commit its files first")
		}
		return err
	}
	r.head, r.format = strings.TrimSpace(string(out)), format

	bare := filepath.Join(r.work, "git")
	if _, err := runGit(ctx, r.work, nil, "init", "-q", "--bare", "--template=", "--object-format="+format, bare); err != nil {
		return err
	}
	alternates := filepath.Join(bare, "objects", "info", "alternates")
	if err := os.MkdirAll(filepath.Dir(alternates), 0o755); err != nil {
		return hostError("snapshot", err)
	}
	if err := os.WriteFile(alternates, []byte(filepath.Join(common, "objects")+"\n"), 0o644); err != nil {
		return hostError("snapshot", err)
	}
	if err := copyShallow(common, bare); err != nil {
		return err
	}
	return r.exportHead(ctx, bare)
}

// copyShallow carries over where a shallow clone's history ends.
func copyShallow(from, to string) error {
	data, err := os.ReadFile(filepath.Join(from, "shallow"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(to, "shallow"), data, 0o644)
	}
	if err != nil {
		return hostError("carry over shallow history", err)
	}
	return nil
}

// exportHead writes the blobs of HEAD's tree into base/.
func (r *Repo) exportHead(ctx context.Context, bare string) error {
	list, err := runGit(ctx, bare, nil, "ls-tree", "-r", "-z", "--full-tree", r.head)
	if err != nil {
		return err
	}
	var blobs []blob
	for item := range bytes.SplitSeq(list, []byte{0}) {
		meta, name, ok := strings.Cut(string(item), "\t")
		if !ok {
			continue
		}
		fields := strings.Fields(meta)
		if len(fields) != 3 {
			return fmt.Errorf("git ls-tree answered %q", item)
		}
		if why := unsafePath(name); why != "" {
			return fmt.Errorf("HEAD has a path %q that %s", name, why)
		}
		mode := fs.FileMode(0o644)
		switch fields[0] {
		case "160000":
			r.base[name] = entry{fs.ModeDir}
			if err := os.MkdirAll(filepath.Join(r.work, "base", filepath.FromSlash(name)), 0o755); err != nil {
				return hostError("snapshot", err)
			}
			continue
		case "120000":
			mode = fs.ModeSymlink
		case "100755":
			mode = 0o755
		}
		blobs = append(blobs, blob{name, mode, fields[2]})
	}
	// In portions, so that memory does not hold a whole repository.
	for portion := range slices.Chunk(blobs, 1000) {
		if err := r.exportBlobs(ctx, bare, portion); err != nil {
			return err
		}
	}
	return nil
}

type blob struct {
	name string
	mode fs.FileMode
	id   string
}

func (r *Repo) exportBlobs(ctx context.Context, bare string, blobs []blob) error {
	var request bytes.Buffer
	for _, b := range blobs {
		fmt.Fprintln(&request, b.id)
	}
	content, err := runGit(ctx, bare, request.Bytes(), "cat-file", "--batch")
	if err != nil {
		return err
	}
	in := bufio.NewReader(bytes.NewReader(content))
	for _, b := range blobs {
		header, err := in.ReadString('\n')
		fields := strings.Fields(header)
		if err != nil || len(fields) != 3 || fields[1] != "blob" {
			return fmt.Errorf("read %s from the object store: %q", b.name, strings.TrimSpace(header))
		}
		size, err := strconv.Atoi(fields[2])
		if err != nil {
			return fmt.Errorf("read %s from the object store: %w", b.name, err)
		}
		data := make([]byte, size+1) // a newline follows each blob
		if _, err := io.ReadFull(in, data); err != nil {
			return fmt.Errorf("read %s from the object store: %w", b.name, err)
		}
		if err := r.addBase(b.name, b.mode, data[:size]); err != nil {
			return err
		}
	}
	return nil
}

// addBase writes one path of the snapshot; parents are real folders, since
// neither git trees nor a walk that follows no links has a path below a link.
func (r *Repo) addBase(name string, mode fs.FileMode, data []byte) error {
	r.base[name] = entry{mode}
	target := filepath.Join(r.work, "base", filepath.FromSlash(name))
	err := os.MkdirAll(filepath.Dir(target), 0o755)
	switch {
	case err != nil:
	case mode&fs.ModeSymlink != 0:
		err = os.Symlink(string(data), target)
	default:
		err = writeFile(target, data, mode)
	}
	if err != nil {
		return hostError("snapshot", err)
	}
	return nil
}

// snapshotFolder copies a folder that is no git repository, without caches,
// nested repositories' histories and anything that is neither file nor link.
func (r *Repo) snapshotFolder(ctx context.Context, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	files, size := 0, int64(0)
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if name == "." {
			return nil
		}
		if path.Base(name) == ".git" || isCache(name) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if why := unsafePath(name); why != "" {
			return fmt.Errorf("path %q %s", name, why)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := root.Readlink(name)
			if err != nil {
				return err
			}
			return r.addBase(name, fs.ModeSymlink, []byte(target))
		case d.Type().IsRegular():
			files, size = files+1, size+info.Size()
			if files > maxFolderFiles || size > maxFolderBytes {
				return fmt.Errorf("more than %d files or %d GiB; commit what belongs to the project into a git repository", maxFolderFiles, maxFolderBytes>>30)
			}
			data, err := root.ReadFile(name)
			if err != nil {
				return err
			}
			return r.addBase(name, permissions(info.Mode()), data)
		}
		return nil
	})
}

// permissions are git's: a file is executable or it is not.
func permissions(mode fs.FileMode) fs.FileMode {
	if mode&0o111 != 0 {
		return 0o755
	}
	return 0o644
}
