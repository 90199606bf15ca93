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
 * process ends, and with it the pid namespace. With the argument "launch" it
 * makes the sandbox first, see launch.c. With "stream" it serves a stream
 * instead, see below. With any other it makes a user namespace and ends: until
 * it is reaped, its parent can fill in the namespace's maps and open it. Forking
 * the trainer for that would copy its page tables.
 *
 * The process is not dumpable: what runs inside has the same uid, and could
 * otherwise take the socket from /proc/1/fd and forge a reply. */

#include "sys.h"

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp,%ebp\n\tmov %rsp,%rdi\n\tand $-16,%rsp\n\tcall serve\n\thlt\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29,#0\n\tmov x30,#0\n\tmov x0,sp\n\tbl serve\n");
#endif

enum {
	EAGAIN = 11, ENOTDIR = 20, NFDS = 4,
	O_NONBLOCK = 04000, F_SETFD = 2, F_SETFL = 4, FD_CLOEXEC = 1, SEEK_END = 2,
	PROT_RW = 3, MAP_PRIVATE = 2, MAP_ANONYMOUS = 0x20,
	SIG_SETMASK = 2, SIGPIPE = 13, WNOHANG = 1, POLLIN = 1, POLLOUT = 4, CLOCK_BOOTTIME = 7,
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

/* end_all kills and reaps everything else: kill(-1) reaches everything in the
 * namespace but us, also what is being forked; what lost its parent is ours. */
static void end_all(void)
{
	long r;
	S(SYS_kill, -1, SIGKILL, 0);
	do
		r = sys(SYS_wait4, -1, 0, WALL, 0, 0, 0);
	while (r > 0 || r == -EINTR);
}

static void tell(struct reply *reply, u32 status, struct rusage *usage)
{
	reply->status = status;
	reply->user_us = usage->usec[0] * 1000000 + usage->usec[1];
	reply->system_us = usage->usec[2] * 1000000 + usage->usec[3];
	reply->maxrss_kb = usage->maxrss;
}

/* The stream: the same service over stdin and stdout, for a container engine
 * that passes no descriptors. A frame is a byte that names it, the length of
 * the rest in four bytes, and the rest. To us:
 *   L lifetime in seconds (u64)    F seccomp filter    R request, as above
 *   I input of the command, at most one frame before its A    E end of input
 *   K kill the command and everything it started
 * From us: H ready, O and e output, A input was taken, S struct reply. */
enum { CHUNK = 1 << 16, MAX_REQUEST = 1 << 24 };

struct pollfd { int fd; short events, revents; };
struct timespec { long sec, nsec; };

static char input[CHUNK], output[CHUNK];
static u64 expires = -1UL; /* by CLOCK_BOOTTIME, in seconds */

static u64 now(void)
{
	struct timespec t = {0, 0};
	S(SYS_clock_gettime, CLOCK_BOOTTIME, &t, 0);
	return t.sec;
}

static void write_all(const void *data, u64 n)
{
	const char *p = data;
	while (n) {
		long r = S(SYS_write, 1, p, n);
		if (r == -EINTR)
			continue;
		if (r <= 0)
			leave(1);
		p += r;
		n -= r;
	}
}

static void read_all(void *to, u64 n)
{
	char *p = to;
	while (n) {
		long r = S(SYS_read, 0, p, n);
		if (r == -EINTR)
			continue;
		if (r <= 0)
			leave(0); /* the trainer is gone */
		p += r;
		n -= r;
	}
}

static void put(char type, const void *data, u32 n)
{
	char head[5] = {type, n & 255, n >> 8 & 255, n >> 16 & 255, n >> 24};
	write_all(head, sizeof head);
	write_all(data, n);
}

static u32 next(char *type)
{
	unsigned char head[5];
	read_all(head, sizeof head);
	*type = head[0];
	return head[1] | (u32)head[2] << 8 | (u32)head[3] << 16 | (u32)head[4] << 24;
}

/* wait_for waits for any of n descriptors and leaves when the lifetime is over. */
static void wait_for(struct pollfd *p, int n)
{
	struct timespec second = {1, 0};
	for (int i = 0; i < n; i++)
		p[i].revents = 0;
	sys(SYS_ppoll, (long)p, n, (long)&second, 0, 0, 0);
	if (now() > expires)
		leave(0);
}

static void *map(u64 size)
{
	void *p = (void *)sys(SYS_mmap, 0, size, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if ((u64)p > -4096UL)
		leave(1);
	return p;
}

/* pump passes on what a stream of the command has, and closes it at its end. */
static void pump(struct pollfd *p, char type)
{
	long n = S(SYS_read, p->fd, output, sizeof output);
	if (n > 0) {
		put(type, output, n);
	} else if (n != -EINTR && n != -EAGAIN) {
		S(SYS_close, p->fd, 0, 0);
		p->fd = -1;
	}
}

static void close_input(struct pollfd *p)
{
	if (p->fd >= 0)
		S(SYS_close, p->fd, 0, 0);
	p->fd = -1;
}

static _Noreturn void stream_child(struct request *q, int *fds)
{
	u64 none = 0;
	long fd;
	sys(SYS_rt_sigprocmask, SIG_SETMASK, (long)&none, 0, 8, 0, 0);
	/* Memory is taken back from the command before it is from us. Our own
	 * files in /proc are ours only while we are dumpable; nobody else lives. */
	S(SYS_prctl, PR_SET_DUMPABLE, 1, 0);
	fd = sys(SYS_openat, AT_FDCWD, (long)"/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC, 0, 0, 0);
	if (fd >= 0) {
		S(SYS_write, fd, "1000", 4);
		S(SYS_close, fd, 0, 0);
	}
	child(q, fds);
}

static void command(struct request *q, u64 size, int children)
{
	enum { CONTROL, CHILDREN, OUT, ERR, IN, NPOLL };
	int in[2], out[2], err[2], running = 1;
	u64 held = 0, taken = 0;
	u32 status = 0;
	struct reply reply = {0};
	struct rusage usage = {0};
	if (S(SYS_pipe2, in, O_CLOEXEC, 0) < 0 || S(SYS_pipe2, out, O_CLOEXEC, 0) < 0 || S(SYS_pipe2, err, O_CLOEXEC, 0) < 0)
		leave(1);
	int theirs[NFDS] = {-1, in[0], out[1], err[1]};
	long pid = sys(SYS_clone, SIGCHLD, 0, 0, 0, 0, 0);
	if (pid == 0)
		stream_child(q, theirs);
	if (pid < 0)
		leave(1);
	S(SYS_munmap, q, size, 0);
	for (int i = 1; i < NFDS; i++)
		S(SYS_close, theirs[i], 0, 0);
	S(SYS_fcntl, in[1], F_SETFL, O_WRONLY | O_NONBLOCK);
	S(SYS_fcntl, out[0], F_SETFL, O_NONBLOCK);
	S(SYS_fcntl, err[0], F_SETFL, O_NONBLOCK);
	struct pollfd p[NPOLL] = {
		{0, POLLIN, 0}, {children, POLLIN, 0}, {out[0], POLLIN, 0}, {err[0], POLLIN, 0}, {in[1], 0, 0},
	};
	while (running) {
		p[IN].events = held ? POLLOUT : 0;
		wait_for(p, NPOLL);
		if (p[OUT].revents)
			pump(&p[OUT], 'O');
		if (p[ERR].revents)
			pump(&p[ERR], 'e');
		if (p[IN].revents) {
			long n = held ? S(SYS_write, p[IN].fd, input + taken, held - taken) : -1;
			if (n > 0)
				taken += n;
			else if (n != -EAGAIN && n != -EINTR)
				close_input(&p[IN]); /* nobody reads it */
		}
		if (p[CONTROL].revents) {
			char type;
			u32 n = next(&type);
			if (n > (type == 'I' && !held ? sizeof input : 0))
				leave(1);
			switch (type) {
			case 'I':
				read_all(input, n);
				held = n;
				taken = 0;
				break;
			case 'E':
				close_input(&p[IN]);
				break;
			case 'K':
				S(SYS_kill, -1, SIGKILL, 0);
				break;
			default:
				leave(1);
			}
		}
		if (held && (p[IN].fd < 0 || taken == held)) {
			held = 0;
			put('A', 0, 0);
		}
		if (p[CHILDREN].revents) {
			long r;
			S(SYS_read, children, output, sizeof output);
			while ((r = sys(SYS_wait4, -1, (long)&status, WNOHANG | WALL, (long)&usage, 0, 0)) > 0)
				if (r == pid) {
					tell(&reply, status, &usage);
					running = 0;
				}
		}
	}
	end_all();
	close_input(&p[IN]);
	while (p[OUT].fd >= 0)
		pump(&p[OUT], 'O');
	while (p[ERR].fd >= 0)
		pump(&p[ERR], 'e');
	put('S', &reply, sizeof reply);
}

static void stream(void)
{
	u64 mask = 1UL << (SIGCHLD - 1), lifetime;
	/* A command need not read its input. Linux spares the first process of a
	 * namespace the signal; gVisor does not. */
	u64 blocked = mask | 1UL << (SIGPIPE - 1);
	long children;
	for (int i = 0; i < 3; i++)
		S(SYS_fcntl, i, F_SETFD, FD_CLOEXEC);
	sys(SYS_rt_sigprocmask, SIG_SETMASK, (long)&blocked, 0, 8, 0, 0);
	children = sys(SYS_signalfd4, -1, (long)&mask, 8, O_CLOEXEC | O_NONBLOCK, 0, 0);
	if (children < 0)
		leave(1);
	put('H', 0, 0);
	for (;;) {
		struct pollfd control = {0, POLLIN, 0};
		char type;
		u32 n;
		wait_for(&control, 1);
		if (!control.revents)
			continue;
		n = next(&type);
		if (type == 'L' && n == sizeof lifetime) {
			read_all(&lifetime, n);
			expires = now() + lifetime;
		} else if (type == 'F' && n <= sizeof input) {
			read_all(input, n);
			if (confine(input, n) < 0)
				leave(1);
		} else if (type == 'R' && n <= MAX_REQUEST) {
			void *q = map(n);
			read_all(q, n);
			command(q, n, children);
		} else if (type == 'I' && n <= sizeof input) {
			read_all(input, n); /* for a command that has ended */
		} else if (n || (type != 'E' && type != 'K')) {
			leave(1);
		}
	}
}

__attribute__((used, noreturn)) void serve(long *stack)
{
	int fds[NFDS], null, i;
	int argc = stack[0];
	char **argv = (char **)(stack + 1);
	if (argc > 1 && argv[1][0] == 'l')
		launch(argc, argv);
	if (argc > 1 && argv[1][0] != 's')
		leave(S(SYS_unshare, CLONE_NEWUSER, 0, 0) != 0);
	/* Elsewhere kill(-1) would reach processes that are none of the sandbox's. */
	if (S(SYS_getpid, 0, 0, 0) != 1)
		leave(1);
	S(SYS_prctl, PR_SET_DUMPABLE, 0, 0);
	S(SYS_umask, 022, 0, 0);
	/* What the trainer's own parent left open is nothing for a sandbox. */
	i = argc > 1 ? CHANNEL : CHANNEL + 1;
	if (S(SYS_close_range, i, ~0U, 0) < 0)
		for (; i < 65536; i++)
			S(SYS_close, i, 0, 0);
	if (argc > 1) /* an argument */
		stream();
	S(SYS_fcntl, CHANNEL, F_SETFD, FD_CLOEXEC);
	null = sys(SYS_openat, AT_FDCWD, (long)"/dev/null", O_RDWR | O_CLOEXEC, 0, 0, 0);
	if (null < 0)
		leave(1);
	for (i = 0; i < 3; i++)
		S(SYS_dup3, null, i, 0);
	S(SYS_close, null, 0, 0);
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
		tell(&reply, status, &usage);
		end_all();
		sys(SYS_sendto, CHANNEL, (long)&reply, sizeof reply, MSG_NOSIGNAL, 0, 0);
	}
	leave(0);
}
