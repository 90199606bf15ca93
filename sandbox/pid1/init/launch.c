/* The launcher: it makes the namespaces of a sandbox and executes the first
 * process in them.
 *
 *   launch ROOT WORKSPACE TMP filter|open [SOURCE TARGET]...
 *
 * ROOT is the folder that becomes "/", read-only; WORKSPACE and TMP are shown
 * writable at /workspace and /tmp, and each SOURCE read-only at TARGET, a path
 * below ROOT without the leading slash. With "filter" fd 4 holds a seccomp filter.
 *
 * It is started as an unprivileged user of the host, whom all that follows runs as:
 * its rights are those that the kernel gives to whoever makes a user namespace, in
 * that namespace only, and they are given up before the first command. What is
 * mounted is copied from the namespace that it is started in, which keeps what is
 * locked there locked here. Nothing that runs inside has had a word before the
 * last step, and each step that fails ends it with a line on fd 2. */

#include "sys.h"

enum {
	FILTER = 4, UID = 1000,
	AF_INET = 2, SOCK_DGRAM = 2, SIOCSIFFLAGS = 0x8914, IFF_UP = 1,
	S_IFREG = 0100000, AT_EMPTY_PATH = 0x1000, AT_RECURSIVE = 0x8000,
	OPEN_TREE_CLONE = 1, MOVE_EMPTY_PATH = 4, FSCONFIG_SET_STRING = 1, FSCONFIG_CREATE = 6,
	RDONLY = 1, NOSUID = 2, NODEV = 4, NOEXEC = 8, MS_PRIVATE = 1 << 18, MNT_DETACH = 2,
	NEWNS = 0x20000, NEWCGROUP = 0x2000000, NEWUTS = 0x4000000, NEWIPC = 0x8000000, NEWPID = 0x20000000, NEWNET = 0x40000000,
	PR_SET_PDEATHSIG = 1, PR_CAPBSET_DROP = 24, PR_CAP_AMBIENT = 47, PR_CAP_AMBIENT_CLEAR_ALL = 4,
	CAPABILITY_VERSION_3 = 0x20080522,
};

struct mount_attr { u64 set, clear, propagation, userns; };

/* number writes n in decimal and returns the end. */
static char *number(char *to, u64 n)
{
	if (n > 9)
		to = number(to, n / 10);
	*to = '0' + n % 10;
	return to + 1;
}

/* must returns what a call has returned, or says which one failed, and how. */
static long must(const char *what, long r)
{
	char text[32];
	if (r >= 0)
		return r;
	say(what);
	say(": error ");
	*number(text, -r) = 0;
	say(text);
	leave(1);
}

static void write_file(const char *name, const char *text)
{
	long fd = must(name, sys(SYS_openat, AT_FDCWD, (long)name, O_WRONLY | O_CLOEXEC, 0, 0, 0));
	must(name, S(SYS_write, fd, text, length(text)));
	S(SYS_close, fd, 0, 0);
}

/* map makes the host's user id the sandbox's own. */
static void map(const char *name, u64 id)
{
	char text[32], *end = number(text, UID);
	*end++ = ' ';
	end = number(end, id);
	*end++ = ' ';
	*end++ = '1';
	*end = 0;
	write_file(name, text);
}

/* tree copies the mounts of a place, for nowhere yet. */
static long tree(const char *name, u64 attributes)
{
	struct mount_attr a = {attributes, 0, 0, 0};
	long fd = must(name, S(SYS_open_tree, AT_FDCWD, name, OPEN_TREE_CLONE | O_CLOEXEC | AT_RECURSIVE));
	must(name, sys(SYS_mount_setattr, fd, (long)"", AT_EMPTY_PATH | AT_RECURSIVE, (long)&a, sizeof a, 0));
	return fd;
}

/* fresh makes a file system, for nowhere yet; options are pairs of name and value. */
static long fresh(const char *kind, u64 attributes, const char *const *options)
{
	long fd, fs = must(kind, S(SYS_fsopen, kind, 1, 0));
	for (; options && *options; options += 2)
		must(*options, sys(SYS_fsconfig, fs, FSCONFIG_SET_STRING, (long)options[0], (long)options[1], 0, 0));
	must(kind, sys(SYS_fsconfig, fs, FSCONFIG_CREATE, 0, 0, 0, 0));
	fd = must(kind, S(SYS_fsmount, fs, 1, attributes));
	S(SYS_close, fs, 0, 0);
	return fd;
}

/* put attaches a mount at a name below dir. */
static void put(long mount, long dir, const char *name)
{
	must(name, sys(SYS_move_mount, mount, (long)"", dir, (long)name, MOVE_EMPTY_PATH, 0));
	S(SYS_close, mount, 0, 0);
}

/* devices puts the few devices that every program may use, terminals and shared
 * memory of its own at dev. */
static void devices(void)
{
	static const char *const names[] = {"null", "zero", "full", "random", "urandom", "tty", 0};
	static const char *const links[] = {
		"/proc/self/fd", "fd", "/proc/self/fd/0", "stdin", "/proc/self/fd/1", "stdout", "/proc/self/fd/2", "stderr", "pts/ptmx", "ptmx", 0,
	};
	static const char *const dev_options[] = {"mode", "755", 0};
	static const char *const pts_options[] = {"ptmxmode", "666", "mode", "620", 0};
	static const char *const shm_options[] = {"mode", "1777", "size", "64m", 0};
	struct mount_attr sealed = {RDONLY, 0, 0, 0};
	long dev = fresh("tmpfs", NOSUID | NODEV | NOEXEC, dev_options);
	must("dev", sys(SYS_move_mount, dev, (long)"", AT_FDCWD, (long)"dev", MOVE_EMPTY_PATH, 0));
	for (int i = 0; names[i]; i++) {
		char path[16] = "/dev/";
		for (u64 c = 0; names[i][c]; c++)
			path[5 + c] = names[i][c];
		must(path, sys(SYS_mknodat, dev, (long)names[i], S_IFREG | 0666, 0, 0, 0));
		/* A device takes data all the same; its file on the host stays as it is. */
		put(tree(path, RDONLY | NOSUID | NOEXEC), dev, names[i]);
	}
	for (int i = 0; links[i]; i += 2)
		must(links[i + 1], S(SYS_symlinkat, links[i], dev, links[i + 1]));
	must("dev/pts", S(SYS_mkdirat, dev, "pts", 0755));
	must("dev/shm", S(SYS_mkdirat, dev, "shm", 0755));
	put(fresh("devpts", NOSUID | NOEXEC, pts_options), dev, "pts");
	put(fresh("tmpfs", NOSUID | NODEV, shm_options), dev, "shm");
	must("dev", sys(SYS_mount_setattr, dev, (long)"", AT_EMPTY_PATH, (long)&sealed, sizeof sealed, 0));
	S(SYS_close, dev, 0, 0);
}

/* loopback brings up the only interface of a new network. */
static void loopback(void)
{
	struct { char name[16]; short flags; char rest[22]; } lo = {"lo", IFF_UP, {0}};
	long fd = must("socket", S(SYS_socket, AF_INET, SOCK_DGRAM | O_CLOEXEC, 0));
	must("loopback", S(SYS_ioctl, fd, SIOCSIFFLAGS, &lo));
	S(SYS_close, fd, 0, 0);
}

/* drop gives up every capability, for good. */
static void drop(void)
{
	struct { u32 version, pid; } head = {CAPABILITY_VERSION_3, 0};
	u32 none[6] = {0};
	long r, capability = 0;
	while ((r = sys(SYS_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0, 0)) == 0)
		capability++;
	must("capability bounding set", r == -EINVAL && capability ? 0 : r);
	must("ambient capabilities", sys(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0));
	must("capabilities", S(SYS_capset, &head, none, 0));
	must("no new privileges", sys(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0));
}

static void mounts(int argc, char **argv)
{
	static const char *const covered[] = {"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", 0};
	struct mount_attr apart = {0, 0, MS_PRIVATE, 0};
	long root;
	must("propagation", sys(SYS_mount_setattr, AT_FDCWD, (long)"/", AT_RECURSIVE, (long)&apart, sizeof apart, 0));
	root = tree(argv[2], RDONLY | NOSUID | NODEV);
	must(argv[2], sys(SYS_move_mount, root, (long)"", AT_FDCWD, (long)argv[2], MOVE_EMPTY_PATH, 0));
	must(argv[2], S(SYS_fchdir, root, 0, 0));
	for (int i = 6; i + 1 < argc; i += 2)
		put(tree(argv[i], RDONLY | NOSUID | NODEV), AT_FDCWD, argv[i + 1]);
	/* The kernel makes it only while the one of the host is in sight. */
	put(fresh("proc", NOSUID | NODEV | NOEXEC, 0), AT_FDCWD, "proc");
	devices();
	put(tree(argv[3], NOSUID | NODEV), AT_FDCWD, "workspace");
	put(tree(argv[4], NOSUID | NODEV), AT_FDCWD, "tmp");
	must("pivot_root", S(SYS_pivot_root, ".", ".", 0));
	must("umount", S(SYS_umount2, ".", MNT_DETACH, 0));
	must("/", S(SYS_chdir, "/", 0, 0));
	S(SYS_close, root, 0, 0);
	write_file("/proc/sys/user/max_user_namespaces", "0");
	for (int i = 0; covered[i]; i++)
		if (S(SYS_faccessat, AT_FDCWD, covered[i], 0) != -ENOENT) /* a kernel may lack it */
			put(tree(covered[i], RDONLY | NOSUID | NODEV | NOEXEC), AT_FDCWD, covered[i]);
}

_Noreturn void launch(int argc, char **argv)
{
	static char filter[1 << 16];
	char *first[] = {"/.pid1", 0};
	long n = 0, pid;
	u64 uid = S(SYS_geteuid, 0, 0, 0), gid = S(SYS_getegid, 0, 0, 0);
	int filtered = argc > 5 && argv[5][0] == 'f';
	if (argc < 6 || uid == 0) {
		say("launch: started as root or without its arguments");
		leave(1);
	}
	if (filtered)
		n = must("filter", S(SYS_read, FILTER, filter, sizeof filter));
	must("close_range", S(SYS_close_range, CHANNEL + 1, ~0U, 0));
	must("new namespace", S(SYS_unshare, CLONE_NEWUSER | NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS | NEWCGROUP, 0, 0));
	write_file("/proc/self/setgroups", "deny");
	map("/proc/self/uid_map", uid);
	map("/proc/self/gid_map", gid);
	must("parent-death signal", S(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0));
	pid = must("fork", sys(SYS_clone, SIGCHLD, 0, 0, 0, 0, 0));
	if (pid) {
		/* Outside stays who waits, and whose death is the sandbox's. */
		drop();
		S(SYS_prctl, PR_SET_DUMPABLE, 0, 0);
		S(SYS_close_range, 0, ~0U, 0);
		while (sys(SYS_wait4, pid, 0, WALL, 0, 0, 0) == -EINTR)
			;
		leave(0);
	}
	/* Whoever dies before this line leaves a closed channel behind, at which the
	 * first process ends. */
	must("parent-death signal", S(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0));
	must("session", S(SYS_setsid, 0, 0, 0));
	must("host name", S(SYS_sethostname, "sandbox", 7, 0));
	loopback();
	mounts(argc, argv);
	drop();
	if (filtered)
		must("seccomp", confine(filter, n));
	/* Anew, so that neither its memory nor its command line, which is for
	 * everybody to read, knows of the host. */
	must(first[0], S(SYS_execve, first[0], first, first + 1));
	leave(1);
}
