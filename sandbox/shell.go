package sandbox

import (
	"context"
	"strings"
	"time"
)

// ShellTimeout is the default deadline of one command of a Shell.
const ShellTimeout = 120 * time.Second

// Shell is a persistent, non-interactive bash session on a sandbox. Each
// command is a bash process of its own which first restores the working
// directory and the exported environment that the previous one left, from a
// file outside the workspace; so nothing that a command prints, and no way in
// which it dies, can desynchronise the session. Variables that are not
// exported, functions, options and background processes end with the command.
type Shell struct {
	// Timeout of one command; ShellTimeout when zero.
	Timeout time.Duration
	// Name tells the sessions of one sandbox apart; it is part of a file name.
	Name string

	sandbox Sandbox
}

// NewShell makes a session that starts in the workspace. It runs nothing.
func NewShell(s Sandbox) *Shell { return &Shell{sandbox: s} }

// Run runs a command. Result.Stdout holds what it printed on both streams, in
// order. A command that is killed, or that replaces its shell with exec,
// leaves the session as it was before.
func (s *Shell) Run(ctx context.Context, command string) (Result, error) {
	timeout := s.Timeout
	if timeout <= 0 {
		timeout = ShellTimeout
	}
	return s.sandbox.Exec(ctx, Cmd{
		Args:    []string{"bash", "--noprofile", "--norc", "-c", shellScript, "bash", "/tmp/.shell" + s.Name},
		Stdin:   strings.NewReader(command),
		Timeout: timeout,
	})
}

// shellScript takes the state file as $1 and the command on stdin: an argument
// could not be longer than 128 KiB. It is one line, so that bash's messages
// about the command say "line 1". A trap that the command sets on EXIT
// replaces ours, hence the call of save at the end, too.
var shellScript = strings.Join([]string{
	`exec 2>&1`,
	`IFS= read -r -d '' __ssr_command`,
	`exec </dev/null`,
	`__ssr_state=$1; set --`,
	`if [[ -r $__ssr_state ]]; then . "$__ssr_state"; fi`,
	`__ssr_save() { [[ ${__ssr_saved-} ]] && return; __ssr_saved=1; { set +eux; export -p; printf 'cd -- %q 2>/dev/null || { echo "shell: the folder is gone, back in /workspace"; cd /workspace; }\n' "$PWD"; } 2>/dev/null >|"$__ssr_state.new" && command -p mv -f -- "$__ssr_state.new" "$__ssr_state"; }`,
	`trap '__ssr_save' EXIT`,
	`eval "$__ssr_command"`,
	`__ssr_status=$?`,
	`__ssr_save`,
	`exit $__ssr_status`,
}, "; ")
