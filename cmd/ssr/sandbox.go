package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"

	"github.com/ssr-go/ssr/rollout/selfplay"
	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/docker"
	"github.com/ssr-go/ssr/sandbox/local"
)

// sandboxConfig chooses where untrusted code runs.
type sandboxConfig struct {
	// Environment is a system that ssr env keeps, which brings the backend and the root
	// folder or image with it: its name, or STORE/NAME where the store is not the usual one.
	Environment string `json:"environment,omitempty" yaml:"environment,omitempty"`
	// Backend is "local", namespaces of this machine, or "docker", containers of an
	// engine on this machine.
	Backend string `json:"backend" yaml:"backend"`
	// Launcher makes the namespaces of local: "native", our own, "bwrap", bubblewrap, or
	// "", the native one where it works.
	Launcher string `json:"launcher,omitempty" yaml:"launcher,omitempty"`
	// Rootfs is the folder of the system that local sandboxes see, "" for this machine's.
	Rootfs string `json:"rootfs,omitempty" yaml:"rootfs,omitempty"`
	// Image and Runtime are docker's: the image that commands see, which must be
	// there, and the OCI runtime, "" for the engine's default.
	Image   string `json:"image,omitempty" yaml:"image,omitempty"`
	Runtime string `json:"runtime,omitempty" yaml:"runtime,omitempty"`
	// Engine is docker's socket, "" for DOCKER_HOST or the usual places.
	Engine string `json:"engine,omitempty" yaml:"engine,omitempty"`
	// Allow lists protections that may be missing (see ssr doctor); without it a
	// sandbox that cannot be closed properly is not started.
	Allow []string `json:"allow,omitempty" yaml:"allow,omitempty"`
	// ReadOnly lists folders of the host that sandboxes may read, such as an
	// installed toolchain.
	ReadOnly []string `json:"read_only,omitempty" yaml:"read_only,omitempty"`
	// Env is laid over the environment variables of every sandbox and those that
	// Environment brings.
	Env map[string]string `json:"env,omitempty" yaml:"env,omitempty"`
	// StateDir holds the workspaces of live sandboxes; "" is below the temporary folder.
	StateDir string `json:"state_dir,omitempty" yaml:"state_dir,omitempty"`
	// MaxLive bounds the sandboxes that are alive at once; 0 sets no bound beside
	// the episodes in flight.
	MaxLive int `json:"max_live,omitempty" yaml:"max_live,omitempty"`
	// Memory in bytes, Processes and Disk in bytes bound one sandbox; 0 is the default.
	Memory    int64 `json:"memory" yaml:"memory"`
	Processes int   `json:"processes" yaml:"processes"`
	Disk      int64 `json:"disk" yaml:"disk"`
}

func (c sandboxConfig) limits() sandbox.Limits {
	return sandbox.Limits{Memory: c.Memory, Processes: c.Processes, Disk: c.Disk}
}

// resolve puts what the environment stands for in its place.
func (c sandboxConfig) resolve() (sandboxConfig, error) {
	if c.Environment == "" {
		return c, nil
	}
	if c.Rootfs != "" || c.Image != "" {
		return c, fmt.Errorf("environment %s is a root folder or an image itself; give no other", c.Environment)
	}
	dir, name := filepath.Split(c.Environment)
	s, err := storeFlag{Store: dir}.open()
	if err != nil {
		return c, err
	}
	e, err := s.Get(name)
	if err != nil {
		return c, err
	}
	if c.Backend == "docker" && e.Backend() != "docker" {
		return c, fmt.Errorf("environment %s is a root folder, which backend docker cannot show; leave the backend out", c.Environment)
	}
	c.Environment, c.Backend, c.Rootfs, c.Image = "", e.Backend(), e.Rootfs, e.Image
	env := map[string]string{}
	maps.Copy(env, e.Env)
	maps.Copy(env, c.Env)
	c.Env = env
	return c, nil
}

// open returns the backend; the caller closes it.
func (c sandboxConfig) open() (sandbox.Backend, error) {
	c, err := c.resolve()
	if err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	b, err := c.backend()
	if err != nil {
		return nil, err
	}
	if c.MaxLive > 0 {
		b = sandbox.NewPool(b, c.MaxLive)
	}
	if len(c.Env) > 0 {
		b = sandbox.WithEnv(b, c.Env)
	}
	return b, nil
}

func (c sandboxConfig) backend() (sandbox.Backend, error) {
	switch c.Backend {
	case "local", "":
		if c.Image != "" || c.Runtime != "" || c.Engine != "" {
			return nil, errors.New("sandbox: image, runtime and engine are for backend docker")
		}
		return local.New(local.Options{Launcher: c.Launcher, Root: c.Rootfs, StateDir: c.StateDir, ReadOnly: c.ReadOnly, Allow: c.Allow})
	case "docker":
		if c.Rootfs != "" || c.Launcher != "" {
			return nil, errors.New("sandbox: rootfs and launcher are for backend local; give docker an image")
		}
		return docker.New(docker.Options{
			Image: c.Image, Runtime: c.Runtime, Host: c.Engine, StateDir: c.StateDir, ReadOnly: c.ReadOnly, Allow: c.Allow,
		})
	}
	return nil, fmt.Errorf("no sandbox backend %q; there are local and docker", c.Backend)
}

// environmentFlag names the system that tests are run in.
type environmentFlag struct {
	Environment string `placeholder:"NAME" help:"The system that sandboxes show, of those that ssr env list has; STORE/NAME where the store is not the usual one."`
}

// sandboxFlags are the flags of commands that start sandboxes.
type sandboxFlags struct {
	Backend string `default:"local" enum:"local,docker" aliases:"sandbox" help:"Sandbox backend: local or docker."`
	environmentFlag
	Image    string   `help:"Image that docker's sandboxes show."`
	Runtime  string   `help:"OCI runtime of docker's sandboxes, such as runsc."`
	Allow    []string `help:"Protections that may be missing on this machine (see ssr doctor)." placeholder:"NAME"`
	ReadOnly []string `help:"Folders of the host that sandboxes may read." placeholder:"DIR" type:"existingdir"`
}

func (f sandboxFlags) config() sandboxConfig {
	return sandboxConfig{Environment: f.Environment, Backend: f.Backend, Image: f.Image, Runtime: f.Runtime, Allow: f.Allow, ReadOnly: f.ReadOnly}
}

// world is a repository with the sandboxes to run its tests in.
type world struct {
	backend sandbox.Backend
	repo    *selfplay.Repo
}

// openWorld takes a snapshot of dir and starts a backend.
func openWorld(ctx context.Context, dir string, c sandboxConfig) (*world, error) {
	backend, err := c.open()
	if err != nil {
		return nil, err
	}
	repo, err := selfplay.OpenRepo(ctx, dir)
	if err != nil {
		return nil, errors.Join(err, backend.Close())
	}
	return &world{backend, repo}, nil
}

func (w *world) Close() error { return errors.Join(w.backend.Close(), w.repo.Close()) }
