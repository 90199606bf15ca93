//go:build linux

package local

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/pid1"
)

// The root that sandboxes see is a small folder prepared once: links such as
// /bin → usr/bin, mount points, a minimal /etc and the first process. It is
// one read-only mount; with each of its files bound by itself, starting a
// sandbox took half as long again.

// systemFolders of the host are shown read-only where they are folders and
// repeated where they are links.
var systemFolders = []string{"usr", "bin", "sbin", "lib", "lib64", "lib32", "libx32"}

// ownFolders are the sandbox's own and never shown of a root folder.
var ownFolders = []string{"dev", "proc", "sys", "run", "tmp", "var", "etc", "boot", "lost+found", sandbox.Workdir[1:]}

// shown names what of the root folder's top is shown: all that is not the
// sandbox's own, but of this machine's root only the system.
func (o Options) shown() ([]string, error) {
	if o.Root == "/" {
		return systemFolders, nil
	}
	list, err := os.ReadDir(o.Root)
	var names []string
	for _, e := range list {
		if (e.IsDir() || e.Type() == fs.ModeSymlink) && !slices.Contains(ownFolders, e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// etcFiles are written into the root's /etc: enough for programs to know the
// user and the machine.
var etcFiles = map[string]string{
	"passwd": "root:x:0:0:root:/root:/usr/sbin/nologin\n" +
		"agent:x:1000:1000:agent:" + sandbox.HomeDir + ":/bin/bash\n" +
		"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	"group":         "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n",
	"hosts":         "127.0.0.1 localhost sandbox\n::1 localhost\n",
	"hostname":      "sandbox\n",
	"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
	"resolv.conf":   "",
}

// hostEtc is copied from the host's /etc: what programs need to start, and
// which says nothing about the host beyond what is installed.
var hostEtc = []string{
	"alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "python3*",
	"debian_version", "os-release", "mime.types", "ssl/openssl.cnf", "ssl/certs/ca-certificates.crt",
}

// prepareRoot makes the root folder, or finds the one that an earlier backend
// made of the same parts.
func prepareRoot(opts Options) (string, error) {
	tmp, err := os.MkdirTemp(opts.StateDir, fmt.Sprintf("new-%d-", os.Getpid()))
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	r := rootMaker{dir: tmp}
	r.fill(opts)
	if r.err != nil {
		return "", r.err
	}
	root := filepath.Join(opts.StateDir, fmt.Sprintf("root-%x", r.sum.Sum(nil)[:8]))
	err = os.Rename(tmp, root)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	return root, err
}

type rootMaker struct {
	dir string
	sum hash.Hash // of all parts
	err error
}

func (r *rootMaker) fill(opts Options) {
	r.sum = sha256.New()
	r.folder(".")
	for _, name := range []string{"dev", "proc", "tmp", "var", "etc", sandbox.Workdir[1:]} {
		r.folder(name)
	}
	r.link("/tmp", "var/tmp")
	r.file(pid1.ProgramPath[1:], pid1.Program(), 0o755)
	shown, err := opts.shown()
	r.check(err)
	for _, name := range shown {
		host := filepath.Join(opts.Root, name)
		info, err := os.Lstat(host)
		switch {
		case err != nil:
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(host)
			r.check(err)
			r.link(target, name)
		default:
			r.folder(name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(etcFiles)) {
		r.file("etc/"+name, []byte(etcFiles[name]), 0o644)
	}
	patterns := hostEtc
	if opts.Root != "/" {
		patterns = []string{"*"}
	}
	for _, pattern := range patterns {
		// Below the root, whose own name is no pattern.
		found, err := fs.Glob(os.DirFS(opts.Root), "etc/"+pattern)
		r.check(err)
		for _, name := range found {
			if _, own := etcFiles[filepath.Base(name)]; !own {
				r.copy(filepath.Join(opts.Root, name), name)
			}
		}
	}
	for _, path := range opts.ReadOnly {
		info, err := os.Stat(path)
		if err != nil {
			r.check(err)
		} else if info.IsDir() {
			r.folder(strings.TrimPrefix(path, "/"))
		} else {
			r.file(strings.TrimPrefix(path, "/"), nil, 0o644)
		}
	}
}

func (r *rootMaker) check(err error) {
	if r.err == nil {
		r.err = err
	}
}

// note makes the folder's name depend on a part of it.
func (r *rootMaker) note(parts ...string) { fmt.Fprintf(r.sum, "%q\n", parts) }

func (r *rootMaker) folder(name string) {
	r.note("folder", name)
	r.check(os.MkdirAll(filepath.Join(r.dir, name), 0o755))
	r.check(os.Chmod(filepath.Join(r.dir, name), 0o755))
}

func (r *rootMaker) link(target, name string) {
	r.note("link", name, target)
	r.check(os.Symlink(target, filepath.Join(r.dir, name)))
}

func (r *rootMaker) file(name string, data []byte, mode fs.FileMode) {
	r.note("file", name, mode.String(), string(data))
	if parent := filepath.Dir(name); parent != "." {
		r.folder(parent)
	}
	r.check(os.WriteFile(filepath.Join(r.dir, name), data, mode))
	r.check(os.Chmod(filepath.Join(r.dir, name), mode))
}

func (r *rootMaker) copy(host, name string) {
	info, err := os.Lstat(host)
	switch {
	case err != nil:
		r.check(err)
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(host)
		r.check(err)
		r.link(target, name)
	case info.IsDir() && info.Mode()&0o005 != 0o005: // nobody's but its owner's
	case info.IsDir():
		r.folder(name)
		list, err := os.ReadDir(host)
		r.check(err)
		for _, e := range list {
			r.copy(filepath.Join(host, e.Name()), filepath.Join(name, e.Name()))
		}
	case info.Mode().IsRegular() && info.Mode()&0o004 != 0:
		data, err := os.ReadFile(host)
		r.check(err)
		r.file(name, data, 0o644)
	}
}

// checkReadOnly refuses paths that have no place of their own in the root.
func checkReadOnly(paths []string) error {
	for _, path := range paths {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
			return fmt.Errorf("read-only path %q: give an absolute, clean path below /", path)
		}
		taken := append([]string{"dev", "proc", "tmp", "var/tmp", sandbox.Workdir[1:]}, systemFolders...)
		for _, name := range taken {
			if strings.HasPrefix(path+"/", "/"+name+"/") {
				return fmt.Errorf("read-only path %q: the sandbox has its own /%s", path, name)
			}
		}
	}
	return nil
}
