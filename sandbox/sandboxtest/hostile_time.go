package sandboxtest

import (
	"strings"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

var soon = sandbox.Limits{Command: 300 * time.Millisecond}

var timePrograms = []hostile{
	{name: "control: done in time", program: "sleep 0.01; echo done", want: prints("done\n"), limits: sandbox.Limits{Command: time.Minute}},

	{name: "sleeps", program: "sleep MARK", want: timedOut, limits: soon},
	{name: "ignores signals", program: "trap '' TERM INT HUP QUIT; while :; do sleep MARK; done", want: timedOut, limits: soon},
	{name: "stops itself", program: "sleep MARK & kill -STOP $$", want: timedOut, limits: soon},
	{name: "stops everything", program: "sleep MARK & kill -STOP -1; sleep MARK", want: timedOut, limits: soon},
	{name: "waits for input", program: "sleep MARK & read x < <(sleep MARK)", want: timedOut, limits: soon},
	{name: "leaves a child that holds the pipes", program: "sleep MARK & echo done", want: prints("done\n")},
	{name: "leaves a daemon", program: "(setsid nohup sleep MARK </dev/null >/dev/null 2>&1 &); echo done", want: prints("done\n")},
	{name: "leaves a daemon that ignores signals", program: "(setsid bash -c 'trap \"\" TERM HUP INT; while :; do sleep MARK; done' &) ; echo done", want: prints("done\n")},
	{name: "leaves a chain that forks on", program: "f() { sleep MARK & (sleep 0.01; f) & }; f; sleep 0.1; echo done", want: prints("done\n")},
	{name: "replaces itself", program: "exec sleep MARK", want: timedOut, limits: soon},
	{name: "writes when its time is over", program: "trap 'echo late' EXIT TERM; sleep MARK", want: timedOut, limits: soon},
	{name: "reads input that is not there", program: "cat", want: prints("")},
	{name: "status 137, which is no signal", program: "exit 137", want: exits(137, 0)},
	{name: "status 255", program: "exit 255", want: exits(255, 0)},
	{name: "a signal", program: "kill -TERM $$", want: exits(-1, 15)},
	{name: "tells a status of its own", program: "echo 'exit status: 0'; printf '\\0exit 0\\n'; false", want: exits(1, 0)},
	{name: "binary output", program: "printf '\\377\\000\\n\\r\\033[31m'", want: prints("\xff\x00\n\r\x1b[31m")},
	{name: "a long line", program: "head -c 300000 /dev/zero | tr '\\0' x", want: prints(strings.Repeat("x", 300_000))},
}
