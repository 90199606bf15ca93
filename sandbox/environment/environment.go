// Package environment keeps named systems that sandboxes can show: root folders
// for the local backend, images for a container engine.
package environment

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

// Environment is a system to run tests in.
type Environment struct {
	Name string `json:"name"`
	// Rootfs is a root folder for the local backend; Image is an image of an
	// engine. One of them is set.
	Rootfs string `json:"rootfs,omitempty"`
	Image  string `json:"image,omitempty"`
	// Env is laid over what every sandbox has (sandbox.BaseEnv), which knows nothing of
	// an image's own: a PATH to its toolchain, for instance.
	Env map[string]string `json:"env,omitempty"`
	// Source is the folder or tar file that it was made of.
	Source string    `json:"source,omitempty"`
	Added  time.Time `json:"added"`
}

// Backend that shows it.
func (e Environment) Backend() string {
	if e.Image != "" {
		return "docker"
	}
	return "local"
}

// Store is a folder with a file NAME.json for each environment and, where it was
// made of a tar file, its root folder NAME.
type Store struct{ Dir string }

// DefaultStore is /var/lib/ssr/environments for root, whose home the sandboxes'
// users cannot enter, and below the user's data folder otherwise.
func DefaultStore() (Store, error) {
	if os.Geteuid() == 0 {
		return Store{"/var/lib/ssr/environments"}, nil
	}
	dir := os.Getenv("XDG_DATA_HOME")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return Store{}, err
		}
		dir = filepath.Join(home, ".local/share")
	}
	return Store{filepath.Join(dir, "ssr/environments")}, nil
}

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

func (s Store) file(name string) string { return filepath.Join(s.Dir, name+".json") }

// Add records an environment under its name, which must be new. Rootfs may be a
// folder, which stays where it is, or a tar file, which is unpacked here.
func (s Store) Add(e Environment) (Environment, error) {
	switch {
	case !validName.MatchString(e.Name):
		return e, fmt.Errorf("environment name %q: use up to 64 small letters, digits, dots, dashes and underlines", e.Name)
	case (e.Rootfs == "") == (e.Image == ""):
		return e, fmt.Errorf("environment %s: give a root folder or an image", e.Name)
	}
	if err := sandbox.CheckEnv(e.Env); err != nil {
		return e, fmt.Errorf("environment %s: %w", e.Name, err)
	}
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return e, err
	}
	f, err := os.OpenFile(s.file(e.Name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return e, fmt.Errorf("environment %s is there already: remove %s first", e.Name, s.file(e.Name))
	}
	if err != nil {
		return e, err
	}
	if e.Rootfs != "" {
		e.Source = e.Rootfs
		e.Rootfs, err = rootFolder(e.Rootfs, filepath.Join(s.Dir, e.Name))
	}
	e.Added = time.Now().UTC().Truncate(time.Second)
	if err == nil {
		err = json.NewEncoder(f).Encode(e)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return e, errors.Join(fmt.Errorf("environment %s: %w", e.Name, err), os.Remove(s.file(e.Name)))
	}
	return e, nil
}

// rootFolder returns source, where it is a folder, or unpacks it at dir.
func rootFolder(source, dir string) (string, error) {
	source, err := filepath.Abs(source)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(source)
	if err != nil || info.IsDir() {
		return source, err
	}
	if err := UnpackRoot(source, dir); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, nil
}

// Get returns the environment of a name.
func (s Store) Get(name string) (Environment, error) {
	var e Environment
	if !validName.MatchString(name) {
		return e, fmt.Errorf("%q is no environment's name", name)
	}
	data, err := os.ReadFile(s.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		names, err := s.names()
		there := "none is there yet; ssr env add keeps one"
		if len(names) > 0 {
			there = "there are " + strings.Join(names, ", ")
		}
		return e, errors.Join(fmt.Errorf("no environment %s in %s: %s", name, s.Dir, there), err)
	}
	if err != nil {
		return e, fmt.Errorf("environment %s: %w", name, err)
	}
	if err := json.Unmarshal(data, &e); err != nil { // adding it was broken off
		return e, fmt.Errorf("environment %s: %s is not whole (%w): remove it, with the folder %s where there is one, and add it again",
			name, s.file(name), err, filepath.Join(s.Dir, name))
	}
	return e, nil
}

// names are those of all environments, in their order.
func (s Store) names() (names []string, err error) {
	files, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), ".json"); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

// List returns all environments by name. A store that is not there is empty.
func (s Store) List() ([]Environment, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	list := []Environment{}
	for _, name := range names {
		e, err := s.Get(name)
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, nil
}

// Size adds up the files of a folder in bytes, a file of several names once a
// name. What may not be read is left out.
func Size(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrPermission) {
			return fs.SkipDir
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}
