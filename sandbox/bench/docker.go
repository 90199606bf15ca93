//go:build linux

package bench

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// This file measures a docker client at what the docker backend does.

func docker(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "docker", args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", args[0], err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// dockerRun is "docker run" with these options in front of an image and a command.
func (x *run) dockerRun(options []string, command ...string) (string, error) {
	args := append([]string{"run", "--rm", "--network", "none"}, options...)
	if x.o.Runtime != "" {
		args = append(args, "--runtime", x.o.Runtime)
	}
	return docker(x.ctx, append(append(args, x.o.Image), command...)...)
}

func (x *run) plainDockerRun() (err error) {
	x.r.PlainRun, err = x.rounds(max(1, x.o.Rounds/10), func(int) (time.Duration, error) {
		_, err := x.dockerRun(nil, "true")
		return 0, err
	})
	return err
}

func (x *run) plainDockerExec() error {
	id, err := x.dockerRun([]string{"--detach"}, "sleep", "infinity")
	if err != nil {
		return err
	}
	// Not with x.ctx: it is removed also when that has ended.
	defer docker(context.Background(), "rm", "--force", id)
	x.r.PlainExec, err = x.rounds(max(1, x.o.Rounds/10), func(int) (time.Duration, error) {
		_, err := docker(x.ctx, "exec", id, "bash", "-c", "true")
		return 0, err
	})
	return err
}
