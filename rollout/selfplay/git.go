package selfplay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

// treeTime is the modification time of everything in a prepared tree, and the
// date of its commits: times must not tell which files were touched.
var treeTime = time.Unix(946684800, 0)

// gitTimeout bounds one run of the host's git; none of honest content takes
// more than seconds. A test shortens it.
var gitTimeout = 2 * time.Minute

// errGitSlow is wrapped by the error of a run past gitTimeout.
var errGitSlow = fmt.Errorf("%w: ran past its time", sandbox.ErrInfrastructure)

// gitConfig switches off every setting that makes git run another program or
// rewrite content, whatever a repository's own configuration says.
var gitConfig = []string{
	"core.hooksPath=/dev/null",
	"core.fsmonitor=false",
	"core.attributesFile=/dev/null",
	"core.excludesFile=/dev/null",
	"core.autocrlf=false",
	"core.pager=cat",
	"core.logAllRefUpdates=false",
	"core.fsync=none",
	"gc.auto=0",
	"maintenance.auto=false",
	"protocol.allow=never",
	"safe.directory=*",
	"user.name=ssr",
	"user.email=ssr@localhost",
	"commit.gpgSign=false",
}

// gitError is a run of git that ended with a status other than 0.
type gitError struct {
	args   []string
	exit   int
	stderr string
}

func (e *gitError) Error() string {
	return fmt.Sprintf("git %s: status %d: %s", strings.Join(e.args, " "), e.exit, e.stderr)
}

// runGit runs the host's git in dir with a neutral configuration and
// environment. A status other than 0 is a *gitError; a git that cannot be run
// wraps sandbox.ErrInfrastructure.
func runGit(ctx context.Context, dir string, stdin []byte, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, gitTimeout, errGitSlow)
	defer cancel()
	full := make([]string, 0, 2*len(gitConfig)+len(args))
	for _, c := range gitConfig {
		full = append(full, "-c", c)
	}
	cmd := exec.CommandContext(ctx, "git", append(full, args...)...)
	cmd.Dir = dir
	date := fmt.Sprintf("@%d +0000", treeTime.Unix())
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=/nonexistent",
		"LC_ALL=C",
		"TZ=UTC",
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_ATTR_NOSYSTEM=1",
		"GIT_NO_REPLACE_OBJECTS=1",
		"GIT_NO_LAZY_FETCH=1",
		"GIT_OPTIONAL_LOCKS=0",
		"GIT_TERMINAL_PROMPT=0",
		"GIT_CEILING_DIRECTORIES=" + filepath.Dir(dir),
		"GIT_AUTHOR_DATE=" + date,
		"GIT_COMMITTER_DATE=" + date,
	}
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("git %s: %w", args[0], context.Cause(ctx))
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return stdout.Bytes(), nil
	case errors.As(err, &exit) && exit.Exited() && !strings.Contains(stderr.String(), "No space left on device"):
		return stdout.Bytes(), &gitError{args, exit.ExitCode(), strings.TrimSpace(stderr.String())}
	default:
		return nil, fmt.Errorf("git %s: %w: %w %s", args[0], sandbox.ErrInfrastructure, err, bytes.TrimSpace(stderr.Bytes()))
	}
}

// initCommit makes dir a repository with everything in it as one commit by a
// fixed author at a fixed date, without reflog.
func initCommit(ctx context.Context, dir string) error {
	gitDir := filepath.Join(dir, ".git")
	if _, err := runGit(ctx, dir, nil, "init", "-q", "--template=", "-b", "main"); err != nil {
		return fmt.Errorf("make a one-commit history: %w", err)
	}
	// Attributes of the tree must not rewrite, or refuse, what is added.
	info := filepath.Join(gitDir, "info")
	err := os.MkdirAll(info, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(info, "attributes"), []byte("* -text -eol -ident -filter -working-tree-encoding\n"), 0o644)
	}
	if err != nil {
		return hostError("make a one-commit history", err)
	}
	for _, args := range [][]string{{"add", "-A", "-f"}, {"commit", "-q", "--no-verify", "--allow-empty", "-m", "Initial commit"}} {
		if _, err := runGit(ctx, dir, nil, args...); err != nil {
			return fmt.Errorf("make a one-commit history: %w", err)
		}
	}
	if err := os.RemoveAll(info); err != nil {
		return hostError("make a one-commit history", err)
	}
	return finishGitDir(gitDir, "sha1")
}

// treeConfig is the configuration of a prepared tree's .git, for the agent that
// works in it. The index stays valid when the tree is copied, since only sizes
// and times are compared.
const treeConfig = `[core]
	repositoryformatversion = %d
	filemode = true
	bare = false
	logAllRefUpdates = false
	checkStat = minimal
	trustctime = false
[user]
	name = agent
	email = agent@localhost
[gc]
	auto = 0
`

// finishGitDir configures a prepared .git, removes what tells of its making,
// and fixes all times. format is its object format, "sha1" or "sha256".
func finishGitDir(gitDir, format string) error {
	config := fmt.Sprintf(treeConfig, 0)
	if format != "sha1" {
		config = fmt.Sprintf(treeConfig, 1) + "[extensions]\n\tobjectFormat = " + format + "\n"
	}
	if err := os.WriteFile(filepath.Join(gitDir, "config"), []byte(config), 0o644); err != nil {
		return hostError("prepare .git", err)
	}
	for _, name := range []string{"logs", "COMMIT_EDITMSG", "ORIG_HEAD", "FETCH_HEAD", "description", "hooks", "branches"} {
		if err := os.RemoveAll(filepath.Join(gitDir, name)); err != nil {
			return hostError("prepare .git", err)
		}
	}
	if err := forgetHost(filepath.Join(gitDir, "index"), format); err != nil {
		return err
	}
	if err := fixTimes(gitDir); err != nil {
		return err
	}
	if err := os.Chtimes(filepath.Dir(gitDir), treeTime, treeTime); err != nil {
		return hostError("prepare .git", err)
	}
	return nil
}

// hostError is a failure of the host's own files while doing what.
func hostError(what string, err error) error {
	return fmt.Errorf("%s: %w: %w", what, sandbox.ErrInfrastructure, err)
}
