package sandbox

import (
	"context"
	"fmt"
	"maps"
	"strings"
)

// HomeDir is $HOME inside every sandbox: empty at the start, outside the
// workspace, thrown away with the sandbox.
const HomeDir = "/tmp/home"

// BaseEnv is the environment that every backend starts from; Spec.Env and then
// Cmd.Env are laid over it. It is the same on every host, so that a command's
// output depends on the workspace alone.
func BaseEnv() map[string]string {
	return map[string]string{
		"PATH":   "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME":   HomeDir,
		"TMPDIR": "/tmp",
		"LANG":   "C.UTF-8",
		"LC_ALL": "C.UTF-8",
		"TZ":     "UTC",
		"TERM":   "dumb",
		"PAGER":  "cat",
		"USER":   "agent",
		"SHELL":  "/bin/bash",

		"PYTHONHASHSEED":          "0",
		"PYTHONDONTWRITEBYTECODE": "1",
		"PYTHONNOUSERSITE":        "1",

		"GIT_CONFIG_NOSYSTEM": "1",
		"GIT_TERMINAL_PROMPT": "0",
		"GIT_PAGER":           "cat",
		"GIT_AUTHOR_NAME":     "agent",
		"GIT_AUTHOR_EMAIL":    "agent@sandbox.invalid",
		"GIT_AUTHOR_DATE":     "2000-01-01T00:00:00Z",
		"GIT_COMMITTER_NAME":  "agent",
		"GIT_COMMITTER_EMAIL": "agent@sandbox.invalid",
		"GIT_COMMITTER_DATE":  "2000-01-01T00:00:00Z",
	}
}

// Environ lays the given environments over BaseEnv, later ones winning.
func Environ(layers ...map[string]string) map[string]string {
	env := BaseEnv()
	for _, l := range layers {
		maps.Copy(env, l)
	}
	return env
}

// WithEnv is a backend whose sandboxes have env over BaseEnv, below Spec.Env: what a
// system needs beside its files, such as a PATH to its toolchain. Close closes b.
func WithEnv(b Backend, env map[string]string) Backend {
	return withEnv{b, maps.Clone(env)}
}

type withEnv struct {
	Backend
	env map[string]string
}

// Start implements Backend.
func (b withEnv) Start(ctx context.Context, spec Spec) (Sandbox, error) {
	env := map[string]string{}
	maps.Copy(env, b.env)
	maps.Copy(env, spec.Env)
	spec.Env = env
	return b.Backend.Start(ctx, spec)
}

// CheckEnv refuses names and values that no process can be given.
func CheckEnv(env map[string]string) error {
	for name, value := range env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
			return fmt.Errorf("environment variable %q=%q: a name is not empty and has no equals sign, and neither has a zero byte", name, value)
		}
	}
	return nil
}
