package sandboxtest

import (
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

var (
	fewProcesses = sandbox.Limits{Processes: 40, Command: 2 * time.Second}
	littleMemory = sandbox.Limits{Memory: 96 << 20}
	littleDisk   = sandbox.Limits{Disk: 8 << 20, FileSize: 4 << 20}
)

var exhaustionPrograms = []hostile{
	{name: "control: within the limits", program: "head -c 1M /dev/zero > f; for i in 1 2 3 4 5; do sleep 0.01 & done; wait; echo done", want: prints("done\n"), limits: littleDisk},
	{name: "control: exactly the output limit", program: "head -c 10000 /dev/zero", want: ends("all of it", func(r sandbox.Result) bool { return r.OK() && len(r.Stdout) == 10_000 }), limits: sandbox.Limits{Output: 10_000}},

	{name: "fork bomb", needs: "processes", program: "b() { b | b & }; b; b; sleep MARK", want: timedOut, limits: sandbox.Limits{Processes: 40, Command: time.Second}},
	{name: "many processes", needs: "processes", program: "for i in $(seq 100); do sleep MARK & done; [ $(jobs -r | wc -l) -gt 60 ]", want: held, limits: fewProcesses},
	{name: "many threads", needs: "processes", program: python(`import threading, time
n = 0
try:
    while n < 200:
        threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
        n += 1
except RuntimeError:
    pass
import os
os._exit(0 if n > 60 else 1)`), want: held, limits: fewProcesses},
	{name: "zombies", program: python(`import os
for i in range(30):
    if os.fork() == 0:
        os._exit(0)
print("done")`), want: prints("done\n"), limits: sandbox.Limits{Processes: 40}},
	{name: "memory", needs: "memory", program: python("x = bytearray(400 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\nprint('fits')"), want: fails, limits: littleMemory},
	{name: "memory of many processes", needs: "memory", program: python(`import os, sys
pids = []
for i in range(8):
    pid = os.fork()
    if pid == 0:
        x = bytearray(60 << 20)
        for j in range(0, len(x), 4096): x[j] = 1
        import time; time.sleep(1)
        os._exit(0)
    pids.append(pid)
sys.exit(max(os.waitpid(p, 0)[1] != 0 for p in pids))`), want: fails, limits: littleMemory},
	{name: "memory mapped without a name", needs: "memory", program: python("import mmap\nx = mmap.mmap(-1, 400 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\nprint('fits')"), want: fails, limits: littleMemory},
	{name: "shared memory", needs: "memory", program: "head -c 300M /dev/zero > /dev/shm/x", want: fails, limits: littleMemory},
	{name: "memory files", needs: "memory", program: python("import os\nfd = os.memfd_create('x')\nfor i in range(300): os.write(fd, b'x' * (1 << 20))\nprint('fits')"), want: fails, limits: littleMemory},
	{name: "many large files", needs: "disk", program: "i=0; while :; do head -c 1M /dev/urandom > f$i; i=$((i+1)); done", want: diskFull, limits: littleDisk},
	{name: "many large files in /tmp", needs: "disk", program: "i=0; while :; do head -c 1M /dev/urandom > /tmp/f$i; i=$((i+1)); done", want: diskFull, limits: littleDisk},
	{name: "many empty files", needs: "disk", program: python("for i in range(10**7): open(str(i), 'w').close()"), want: diskFull, limits: littleDisk},
	{name: "deep folders", needs: "disk", program: python("import os\nfor i in range(10**7): os.mkdir('d'); os.chdir('d')"), want: diskFull, limits: littleDisk},
	{name: "files that nobody can see", needs: "unlinked files", program: python(`import os
for i in range(300):
    fd = os.open(str(i), os.O_CREAT | os.O_RDWR)
    os.unlink(str(i))
    os.write(fd, b"x" * (1 << 20))
print("kept")`), want: fails, limits: sandbox.Limits{Memory: 96 << 20, Disk: 8 << 20, OpenFiles: 1000}},
	{name: "one huge file", program: "head -c 2M /dev/zero > f", want: fails, limits: sandbox.Limits{FileSize: 1 << 20}},
	{name: "a huge sparse file", program: "truncate -s 2M f", want: fails, limits: sandbox.Limits{FileSize: 1 << 20}},
	{name: "endless output", program: "sleep MARK & yes", want: truncated, limits: sandbox.Limits{Output: 10_000}},
	{name: "endless errors", program: "yes >&2", want: truncated, limits: sandbox.Limits{Output: 10_000}},
	{name: "output of a child left behind", program: "yes & sleep MARK", want: truncated, limits: sandbox.Limits{Output: 10_000}},
	{name: "open files", program: python("x = [open('/dev/null') for _ in range(64)]"), want: fails, limits: sandbox.Limits{OpenFiles: 32}},
	{name: "core dump", program: "ulimit -c; sh -c 'kill -SEGV $$'; ls core* 2>/dev/null", want: ends("no core", func(r sandbox.Result) bool { return string(r.Stdout) == "0\n" })},
	{name: "processor time", program: "while :; do :; done", want: overCPU, limits: sandbox.Limits{CPU: time.Second, Command: 5 * time.Minute}},
	{name: "processor time by children", program: "while :; do (i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done); done", needs: "cpu", want: overCPU, limits: sandbox.Limits{CPU: time.Second, Command: 5 * time.Minute}},
}
