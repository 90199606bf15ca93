/* The first process of a sandbox: it runs one command at a time for the
 * trainer, kills and reaps everything when the command ends, and reports the
 * raw wait status.
 *
 * It is C without a C library because it must be small (it is started with
 * every sandbox), single-threaded (a fork bomb inside must not be able to
 * break it by starving it of threads, as it would the Go runtime), and able to
 * set limits between fork and exec.
 *
 * fd 3 is a SOCK_SEQPACKET socket to the trainer. A request is one byte with
 * four descriptors: a memory file (layout below) and the command's stdin,
 * stdout and stderr. The reply is struct reply. When the socket closes, the
 * process ends, and with it the pid namespace.
 *
 * The process is not dumpable: what runs inside has the same uid, and could
 * otherwise take the socket from /proc/1/fd and forge a reply. */

typedef unsigned int u32;
typedef unsigned long u64;

#if defined(__x86_64__)
enum {
	SYS_write = 1, SYS_close = 3, SYS_lseek = 8, SYS_mmap = 9, SYS_munmap = 11,
	SYS_sendto = 44, SYS_recvmsg = 47, SYS_clone = 56, SYS_execve = 59,
	SYS_wait4 = 61, SYS_kill = 62, SYS_fcntl = 72, SYS_chdir = 80,
	SYS_umask = 95, SYS_setsid = 112, SYS_prctl = 157, SYS_setrlimit = 160,
	SYS_exit_group = 231, SYS_openat = 257, SYS_dup3 = 292,
};
static long sys(long n, long a, long b, long c, long d, long e, long f)
{
	long r;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "=a"(r)
		: "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		: "rcx", "r11", "memory");
	return r;
}
__asm__(".globl _start\n_start:\n\txor %ebp,%ebp\n\tand $-16,%rsp\n\tcall serve\n\thlt\n");
#elif defined(__aarch64__)
enum {
	SYS_dup3 = 24, SYS_fcntl = 25, SYS_chdir = 49, SYS_openat = 56,
	SYS_close = 57, SYS_lseek = 62, SYS_write = 64, SYS_exit_group = 94,
	SYS_kill = 129, SYS_setsid = 157, SYS_setrlimit = 164, SYS_umask = 166,
	SYS_prctl = 167, SYS_sendto = 206, SYS_recvmsg = 212, SYS_munmap = 215,
	SYS_clone = 220, SYS_execve = 221, SYS_mmap = 222, SYS_wait4 = 260,
};
static long sys(long n, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0)
		: "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}
__asm__(".globl _start\n_start:\n\tmov x29,#0\n\tmov x30,#0\n\tbl serve\n");
#else
#error "no system calls for this processor"
#endif
#define S(n, a, b, c) sys(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)

enum {
	EINTR = 4, ENOENT = 2, ENOTDIR = 20,
	CHANNEL = 3, NFDS = 4,
	AT_FDCWD = -100, O_RDWR = 2, O_CLOEXEC = 02000000,
	F_SETFD = 2, FD_CLOEXEC = 1, SEEK_END = 2,
	PROT_RW = 3, MAP_PRIVATE = 2,
	SIGKILL = 9, SIGCHLD = 17, WALL = 0x40000000,
	PR_SET_DUMPABLE = 4,
	SOL_SOCKET = 1, SCM_RIGHTS = 1, MSG_NOSIGNAL = 0x4000, MSG_CMSG_CLOEXEC = 0x40000000,
};

/* The source's hash, for the test that the binary was built from it. */
__attribute__((used, section(".rodata"))) static const char source[] = "pid1 source " SOURCE;

struct limit { u64 resource, soft, hard; };

/* The memory file: this, nlimits limits, room for argc+1+envc+1 pointers, then
 * strings ended by NUL: the folder, the arguments, the environment. */
struct request { u64 nlimits, argc, envc; };

struct reply {
	u32 status, reserved;      /* as wait4 gives it */
	u64 user_us, system_us;    /* processor time of the command and what it waited for */
	u64 maxrss_kb;
};

struct iovec { void *base; u64 len; };
struct msghdr {
	void *name; u32 namelen, pad0; struct iovec *iov; u64 iovlen;
	void *control; u64 controllen; u32 flags, pad1;
};
struct cmsg { u64 len; u32 level, type; int fds[NFDS]; };
struct rusage { u64 usec[4]; u64 maxrss; u64 rest[13]; };

/* The compiler may call it to clear a struct. */
__attribute__((used)) void *memset(void *to, int c, u64 n)
{
	for (u64 i = 0; i < n; i++)
		((char *)to)[i] = c;
	return to;
}

static u64 length(const char *s)
{
	u64 n = 0;
	while (s[n])
		n++;
	return n;
}

static void say(const char *s) { S(SYS_write, 2, s, length(s)); }

static _Noreturn void leave(int status)
{
	for (;;)
		S(SYS_exit_group, status, 0, 0);
}

/* try executes dir/name, and returns the error. */
static long try(const char *dir, u64 n, const char *name, char **argv, char **envp)
{
	char path[4096];
	u64 m = length(name), i;
	if (n + m + 2 > sizeof path)
		return -ENOENT;
	for (i = 0; i < n; i++)
		path[i] = dir[i];
	if (n)
		path[n++] = '/';
	for (i = 0; i <= m; i++)
		path[n + i] = name[i];
	return S(SYS_execve, path, argv, envp);
}

static _Noreturn void run(char **argv, char **envp)
{
	const char *name = argv[0], *path = "/usr/local/bin:/usr/bin:/bin", *p;
	long err = -ENOENT, e;
	for (p = name; *p && *p != '/'; p++)
		;
	if (*p) {
		err = S(SYS_execve, name, argv, envp);
	} else if (*name) {
		for (char **v = envp; *v; v++)
			if ((*v)[0] == 'P' && (*v)[1] == 'A' && (*v)[2] == 'T' && (*v)[3] == 'H' && (*v)[4] == '=')
				path = *v + 5;
		for (p = path;; p++) {
			const char *start = p;
			while (*p && *p != ':')
				p++;
			e = try(start, p - start, name, argv, envp);
			if (e != -ENOENT && e != -ENOTDIR)
				err = e;
			if (!*p)
				break;
		}
	}
	say(name);
	if (err == -ENOENT || err == -ENOTDIR) {
		say(": not found\n");
		leave(127);
	}
	say(": cannot be executed\n");
	leave(126);
}

static _Noreturn void child(struct request *q, int *fds)
{
	struct limit *limits = (struct limit *)(q + 1);
	char **argv = (char **)(limits + q->nlimits);
	char **envp = argv + q->argc + 1;
	char *s = (char *)(envp + q->envc + 1), *folder = s;
	u64 i;
	s += length(s) + 1;
	for (i = 0; i < q->argc; i++, s += length(s) + 1)
		argv[i] = s;
	for (i = 0; i < q->envc; i++, s += length(s) + 1)
		envp[i] = s;
	S(SYS_setsid, 0, 0, 0);
	for (i = 1; i < NFDS; i++)
		S(SYS_dup3, fds[i], i - 1, 0);
	if (S(SYS_chdir, folder, 0, 0) < 0) {
		say(folder);
		say(": not a folder to run in\n");
		leave(126);
	}
	for (i = 0; i < q->nlimits; i++)
		if (S(SYS_setrlimit, limits[i].resource, &limits[i].soft, 0) < 0) {
			say("sandbox: a limit could not be set\n");
			leave(126);
		}
	run(argv, envp);
}

/* receive waits for a request and returns the number of descriptors, or -1 at the end. */
static int receive(int *fds)
{
	char byte;
	struct cmsg c = {0};
	struct iovec v = {&byte, 1};
	struct msghdr m = {0};
	long n;
	m.iov = &v;
	m.iovlen = 1;
	m.control = &c;
	m.controllen = sizeof c;
	do
		n = S(SYS_recvmsg, CHANNEL, &m, MSG_CMSG_CLOEXEC);
	while (n == -EINTR);
	if (n != 1 || c.level != SOL_SOCKET || c.type != SCM_RIGHTS || c.len != 16 + sizeof c.fds)
		return -1;
	for (int i = 0; i < NFDS; i++)
		fds[i] = c.fds[i];
	return NFDS;
}

__attribute__((used, noreturn)) void serve(void)
{
	int fds[NFDS], null, i;
	S(SYS_prctl, PR_SET_DUMPABLE, 0, 0);
	S(SYS_fcntl, CHANNEL, F_SETFD, FD_CLOEXEC);
	S(SYS_umask, 022, 0, 0);
	null = sys(SYS_openat, AT_FDCWD, (long)"/dev/null", O_RDWR | O_CLOEXEC, 0, 0, 0);
	if (null < 0)
		leave(1);
	for (i = 0; i < 3; i++)
		S(SYS_dup3, null, i, 0);
	sys(SYS_sendto, CHANNEL, (long)"r", 1, MSG_NOSIGNAL, 0, 0);
	while (receive(fds) > 0) {
		struct reply reply = {0};
		struct rusage usage = {0};
		u32 status;
		long pid, r, size = S(SYS_lseek, fds[0], 0, SEEK_END);
		void *q = (void *)sys(SYS_mmap, 0, size, PROT_RW, MAP_PRIVATE, fds[0], 0);
		if ((u64)q > -4096UL)
			leave(1);
		pid = sys(SYS_clone, SIGCHLD, 0, 0, 0, 0, 0);
		if (pid == 0)
			child(q, fds);
		S(SYS_munmap, q, size, 0);
		for (i = 0; i < NFDS; i++)
			S(SYS_close, fds[i], 0, 0);
		if (pid < 0)
			leave(1);
		do {
			r = sys(SYS_wait4, -1, (long)&status, WALL, (long)&usage, 0, 0);
			if (r < 0 && r != -EINTR)
				leave(1);
		} while (r != pid);
		reply.status = status;
		reply.user_us = usage.usec[0] * 1000000 + usage.usec[1];
		reply.system_us = usage.usec[2] * 1000000 + usage.usec[3];
		reply.maxrss_kb = usage.maxrss;
		/* kill(-1) reaches everything in the namespace but us, also what is
		 * being forked; what lost its parent is ours to reap. */
		S(SYS_kill, -1, SIGKILL, 0);
		do
			r = sys(SYS_wait4, -1, 0, WALL, 0, 0, 0);
		while (r > 0 || r == -EINTR);
		sys(SYS_sendto, CHANNEL, (long)&reply, sizeof reply, MSG_NOSIGNAL, 0, 0);
	}
	leave(0);
}
