package sandboxtest

import (
	"fmt"
	"maps"
	"slices"

	"github.com/ssr-go/ssr/sandbox"
)

var escapePrograms = slices.Concat([]hostile{
	{name: "control: a file of its own is written", program: "echo x > mine && grep -q x mine", want: through},
	{name: "control: honest work", program: "python3 src/main.py && sed -i s/one/1/ src/data.txt && cat src/data.txt", want: prints("hello\n1\ntwo\n")},

	{name: "write a program", needs: "filesystem", program: "echo x > /usr/bin/ssr-test || cp /bin/true /bin/ssr-test || touch /usr/lib/ssr-test", want: held},
	{name: "write a configuration", needs: "filesystem", program: "echo x > /etc/ssr-test || echo x:x:0:0::/:/bin/sh >> /etc/passwd", want: held},
	{name: "write the root, /dev, /var or /run", needs: "filesystem", program: "echo x > /ssr-test || echo x > /dev/ssr-test || mkdir /var/ssr-test || mkdir -p /run/ssr-test", want: held},
	{name: "change the system's rights", needs: "filesystem", program: "chmod 777 /etc || chmod 777 /usr || chmod 777 /", want: held},
	{name: "move a system folder", needs: "filesystem", program: "mv /etc /tmp/etc", want: held},
	{name: "link a system file and write through it", needs: "filesystem", program: "ln /etc/passwd p && echo x >> p", want: held},
	{name: "set core_pattern", needs: "filesystem", program: "echo '|/tmp/x' > /proc/sys/kernel/core_pattern", want: held},
	{name: "set modprobe", needs: "filesystem", program: "echo /tmp/x > /proc/sys/kernel/modprobe", want: held},
	{name: "press sysrq", needs: "filesystem", program: "echo h > /proc/sysrq-trigger", want: held},
	{name: "allow itself user namespaces", needs: "filesystem", program: "echo 10000 > /proc/sys/user/max_user_namespaces", want: held},
	{name: "set the host's name", needs: "filesystem", program: "hostname evil || echo evil > /proc/sys/kernel/hostname", want: held},
	{name: "see control groups", needs: "filesystem", program: "ls /sys/fs/cgroup | grep -q .", want: held},
	{name: "use a release agent", needs: "filesystem", program: "mkdir c && mount -t cgroup -o memory none c && echo /tmp/x > c/release_agent", want: held},
	{name: "see /sys", needs: "filesystem", program: "ls /sys/kernel | grep -q .", want: held},
	{name: "read the kernel's log", needs: "filesystem", program: "dmesg | grep -q . || head -c 1 /dev/kmsg", want: held},
	{name: "read the kernel's symbols", needs: "filesystem", program: "grep -v '^0* ' /proc/kallsyms | grep -q .", want: held},
	{name: "read memory", needs: "filesystem", program: "head -c 1 /dev/mem || head -c 1 /dev/kmem || head -c 1 /proc/kcore", want: held},
	{name: "lower the memory killer's score", needs: "filesystem", program: "echo -900 > /proc/self/oom_score_adj", want: held},
	{name: "raise priority", needs: "filesystem", program: "[ \"$(nice -n -5 nice 2>/dev/null || echo 0)\" -lt 0 ] || chrt -f 1 true", want: held},
	{name: "set the clock", needs: "filesystem", program: "date -s 2001-01-01", want: held},
	{name: "be root", needs: "filesystem", program: "[ \"$(id -u)\" = 0 ] || su -c true </dev/null || sudo -n true", want: held},
	{name: "hold capabilities", needs: "filesystem", program: "grep -q 'CapEff:.*[1-9a-f]' /proc/self/status || grep -q 'CapBnd:.*[1-9a-f]' /proc/self/status", want: held},
	{name: "gain privileges by a program's bits", needs: "filesystem", program: "grep -q 'NoNewPrivs:.*0' /proc/self/status || { cp /bin/bash sh && chmod u+s sh && ./sh -p -c '[ $(id -u) != '$(id -u)' ]'; }", want: held},
	{name: "mount", needs: "filesystem", program: "mkdir m && { mount -t tmpfs none m || mount -t proc none m || mount --bind /tmp m; }", want: held},
	{name: "remount", needs: "filesystem", program: "mount -o remount,rw /usr || mount -o remount,rw / || mount -o remount,rw /proc", want: held},
	{name: "unmount", needs: "filesystem", program: "umount /usr || umount /proc || umount -l /workspace", want: held},
	{name: "make namespaces", needs: "filesystem", program: "unshare -Ur true || unshare -m true || unshare -n true || unshare -p -f true", want: held},
	{name: "enter namespaces", needs: "filesystem", program: "nsenter -t 1 -m true", want: held},
	{name: "make a device", needs: "filesystem", program: "mknod /tmp/sda b 8 0 || mknod /tmp/mem c 1 1", want: held},
	{name: "change root", needs: "filesystem", program: "chroot . true", want: held},
	{name: "give files away", needs: "filesystem", program: "touch f && { chown root f || chown 0:0 /tmp; }", want: held},
	{name: "use fuse, loop or kvm", needs: "filesystem", program: "head -c 0 /dev/fuse || head -c 0 /dev/loop-control || head -c 0 /dev/kvm || head -c 0 /dev/net/tun", want: held},
	{name: "look into the first process", needs: "first process", program: "cat /proc/1/environ | grep -q . || ls /proc/1/fd | grep -q . || head -c 1 /proc/1/mem || ls /proc/1/root/ | grep -q .", want: held},
	{name: "kill the first process", needs: "first process", program: "kill -9 1; kill -STOP 1; sleep 0.1; echo alive", want: prints("alive\n")},
	{name: "find the trainer", needs: "filesystem", program: "[ $(ls -d /proc/[0-9]* | wc -l) -gt 12 ] || grep -a -l -e 'local[.]test' -e '[d]ockerd' /proc/[0-9]*/cmdline", want: held},
	{name: "find descriptors that were left open", needs: "filesystem", program: "ls -l /proc/self/fd/ | grep -v -e ' [012] ->' -e ' 3 -> /proc/[0-9]*/fd' -e total; true", want: prints("")},
	{name: "read the host's environment", needs: "filesystem", program: "env | grep hunter2 || cat /proc/*/environ | grep -a hunter2", want: held},
	{name: "read a file of the host", needs: "filesystem", program: "cat SECRET || cat /proc/*/root/SECRET || cat /proc/*/cwd/SECRET || cat ../../../../../../SECRET", want: held},
	{name: "write a file of the host", needs: "filesystem", program: "echo x > TOUCH || echo x > /proc/1/root/TOUCH", want: held},
	{name: "learn the host's name", needs: "filesystem", program: "[ \"$(hostname)\" = 'HOSTNAME' ] || grep -r HOSTNAME /etc/hostname /etc/hosts", want: held},
	{name: "list the trainer's folder", needs: "filesystem", program: "ls FOLDER", want: held},
	{name: "list homes", needs: "filesystem", program: "ls /root | grep -q . || ls /home | grep -q . || grep ':/home/' /etc/passwd", want: held},
	{name: "reach a container engine", needs: "filesystem", program: "ls /run/docker.sock /var/run/docker.sock /run/podman /run/containerd 2>/dev/null | grep -q .", want: held},
	{name: "see another sandbox's files", needs: "filesystem", program: "find /workspace /tmp /var /run /home /dev/shm /proc/[0-9]*/cwd/ -name mine 2>/dev/null | grep -q .", want: held},
	{name: "kill everything", program: "sleep MARK & kill -9 -1", want: worksAfter},
	{name: "type into a terminal", needs: "syscalls", program: "python3 -c '\nimport fcntl, pty\nmaster, slave = pty.openpty()\nfcntl.ioctl(slave, 0x5412, b\"x\")'", want: held},
	{name: "raise its own limits", program: "ulimit -c unlimited || ulimit -n 1000000 || ulimit -u unlimited || ulimit -f unlimited", want: held, limits: sandbox.Limits{OpenFiles: 64}},
	{name: "trace the first process", needs: "first process", program: python(`import ctypes, sys
sys.exit(0 if ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0 else 1)`), want: held},
	{name: "control: a harmless system call", program: call(39, 172), want: through},
}, systemCalls())

// python is a bash command that runs a Python program.
func python(program string) string { return "python3 - <<'END'\n" + program + "\nEND" }

// call makes one system call with zeros; it succeeds when the kernel does not
// turn the call itself away.
func call(x86, arm int) string {
	return python(fmt.Sprintf(`import ctypes, platform, sys
libc = ctypes.CDLL(None, use_errno=True)
r = libc.syscall(%d if platform.machine() == "x86_64" else %d, 0, 0, 0, 0, 0)
print(r, ctypes.get_errno())
sys.exit(1 if r == -1 and ctypes.get_errno() in (1, 38) else 0)  # EPERM, ENOSYS`, x86, arm))
}

// systemCalls are those by which a process can reach the kernel past all
// namespaces. With zeros for arguments each would fail in another way if it
// were let in.
func systemCalls() (list []hostile) {
	numbers := map[string][2]int{ // amd64, arm64
		"keyctl": {250, 219}, "add_key": {248, 217}, "bpf": {321, 280}, "perf_event_open": {298, 241}, "userfaultfd": {323, 282},
		"io_uring_setup": {425, 425}, "clone3": {435, 435}, "open_tree": {428, 428}, "fsopen": {430, 430}, "mount_setattr": {442, 442},
		"kexec_load": {246, 104}, "init_module": {175, 105}, "open_by_handle_at": {304, 265}, "swapon": {167, 224}, "syslog": {103, 116},
		"acct": {163, 89}, "fanotify_init": {300, 262}, "kcmp": {312, 272}, "setns": {308, 268}, "reboot": {169, 142},
	}
	for _, name := range slices.Sorted(maps.Keys(numbers)) {
		n := numbers[name]
		list = append(list, hostile{name: "call " + name, needs: "syscalls", program: call(n[0], n[1]), want: held})
	}
	return list
}
