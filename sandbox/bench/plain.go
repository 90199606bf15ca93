//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// bwrap is the beginning of a shell's command line; $0 is the workspace.
const bwrap = `bwrap --unshare-all --die-with-parent --ro-bind / / --proc /proc --dev /dev --bind "$0" "$0" `

// shell is sh or bash with a script. When ctx ends, its process group is killed: a
// bwrap that dies with its parent leaves a child that waits for it for ever.
func (x *run) shell(ctx context.Context, name, script string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, "-c", script, x.small, strconv.Itoa(x.o.Hostile))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

func (x *run) plainEpisode() error { return x.shell(x.ctx, "sh", "exec "+bwrap+"true").Run() }

func (x *run) plainCold() (err error) {
	x.r.PlainCold, err = x.rounds(x.o.Rounds, func(int) (time.Duration, error) { return 0, x.plainEpisode() })
	return err
}

func (x *run) plainRate() (err error) {
	x.r.PlainPerSecond, err = x.perSecond(x.o.Span, func(int) error { return x.plainEpisode() })
	return err
}

func (x *run) plainCopy() (err error) {
	x.r.PlainCopy, err = x.rounds(max(1, x.o.Rounds/10), func(int) (time.Duration, error) {
		dir, err := os.MkdirTemp("", "ssr-bench-")
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(dir)
		begin := time.Now()
		err = exec.CommandContext(x.ctx, "cp", "-a", x.large, dir).Run()
		return time.Since(begin), err
	})
	return err
}

func (x *run) plainDiff() error {
	dir, err := os.MkdirTemp("", "ssr-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	changed := filepath.Join(dir, "changed")
	if err := exec.CommandContext(x.ctx, "cp", "-a", x.large, changed).Run(); err != nil {
		return err
	}
	for i := range x.o.Changed {
		if err := os.WriteFile(filepath.Join(changed, fileName(i)), []byte("changed\n"), 0o644); err != nil {
			return err
		}
	}
	x.r.PlainDiff, err = x.rounds(max(1, x.o.Rounds/10), func(int) (time.Duration, error) {
		err := exec.CommandContext(x.ctx, "diff", "-rN", x.large, changed).Run()
		var status *exec.ExitError
		if errors.As(err, &status) && status.ExitCode() == 1 {
			return 0, nil // they differ
		}
		return 0, fmt.Errorf("diff found no difference: %w", err)
	})
	return err
}

// plainTree starts a shell's script, each part of which says a byte when it is
// up. end kills all of them and returns when they are dead.
func (x *run) plainTree(script string, parts int) (end func() error, err error) {
	// A part that does not come up says nothing, and the others wait.
	ctx, cancel := context.WithTimeout(x.ctx, time.Minute)
	cmd := x.shell(ctx, "bash", script)
	in, err := cmd.StdinPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	end = func() error {
		cancel()
		in.Close()
		// Its end is that of the last process that holds it.
		_, err := io.Copy(io.Discard, out)
		cmd.Wait()
		return err
	}
	if _, err := io.ReadFull(out, make([]byte, parts)); err != nil {
		return nil, errors.Join(fmt.Errorf("bwrap did not start: %w", err), end())
	}
	return end, nil
}

// idle is a script of n bwraps that wait.
func idle(n int) string {
	return fmt.Sprintf(`exec 3<&0; for ((i = 0; i < %d; i++)); do %s sh -c 'printf u; exec cat' <&3 & done; wait`, n, bwrap)
}

func (x *run) plainAlive() error {
	before, err := availableMiB()
	if err != nil {
		return err
	}
	end, err := x.plainTree(idle(x.o.Alive), x.o.Alive)
	if err != nil {
		return err
	}
	after, err := availableMiB()
	x.r.PlainAliveMiB = (before - after) / float64(x.o.Alive)
	return errors.Join(err, end())
}

func (x *run) plainBurst() error {
	begin := time.Now()
	script := fmt.Sprintf(`for ((i = 0; i < %d; i++)); do %s true & done; wait`, x.o.Burst, bwrap)
	err := x.shell(x.ctx, "bash", script).Run()
	if err == nil {
		x.r.PlainBurstSeconds = time.Since(begin).Seconds()
	}
	return err
}

func (x *run) plainDeath() (err error) {
	x.r.PlainDeath, err = x.rounds(max(1, x.o.Rounds/20), func(int) (time.Duration, error) {
		end, err := x.plainTree("exec "+bwrap+`bash -c '`+hostileTree+`' "$1"`, 1)
		if err != nil {
			return 0, err
		}
		begin := time.Now()
		err = end()
		return time.Since(begin), err
	})
	return err
}
