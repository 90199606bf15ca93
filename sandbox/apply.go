package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// Apply carries changes over into the folder dir, deletions first. Nothing
// outside dir is written, whatever links lie in it. What Diff refuses apart
// from binary files is refused here too, and so are links that lead out of dir.
func Apply(dir string, changes []Change) (refused []Refusal, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("apply: %w", err)
	}
	defer root.Close()
	changes = slices.Clone(changes)
	slices.SortStableFunc(changes, func(a, b Change) int {
		if a.Deleted != b.Deleted {
			if a.Deleted {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Path, b.Path)
	})
	for _, c := range changes {
		reason := unpatchable(c)
		if reason == "" && leadsOut(c) {
			reason = "a link that leads out of the tree"
		}
		if reason != "" {
			refused = append(refused, Refusal{c.Path, reason})
			continue
		}
		if err := applyOne(root, c); err != nil {
			return refused, fmt.Errorf("apply %s: %w", c.Path, err)
		}
	}
	return refused, nil
}

// leadsOut reports whether a link's target lies outside the tree, by its text.
func leadsOut(c Change) bool {
	if fs.FileMode(c.Mode)&fs.ModeSymlink == 0 {
		return false
	}
	to := string(c.Data)
	return path.IsAbs(to) || strings.HasPrefix(path.Join(path.Dir(c.Path), to)+"/", "../")
}

func applyOne(root *os.Root, c Change) error {
	// A new file in place of what is there, which may have other names.
	if err := root.Remove(c.Path); err != nil && !errors.Is(err, fs.ErrNotExist) && !isNotDir(err) {
		return err
	}
	if c.Deleted {
		for d := path.Dir(c.Path); d != "."; d = path.Dir(d) {
			if root.Remove(d) != nil {
				break // not empty
			}
		}
		return nil
	}
	if err := root.MkdirAll(path.Dir(c.Path), 0o755); err != nil {
		return err
	}
	if fs.FileMode(c.Mode)&fs.ModeSymlink != 0 {
		return root.Symlink(string(c.Data), c.Path)
	}
	f, err := root.OpenFile(c.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(c.Data)
	return errors.Join(err, f.Chmod(fs.FileMode(c.Mode)&fs.ModePerm), f.Close())
}
