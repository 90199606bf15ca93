package sandboxtest

import (
	"strings"

	"github.com/ssr-go/ssr/sandbox"
)

var harvestPrograms = []hostile{
	{name: "control: honest work", program: "echo new > new.txt; sed -i s/two/2/ src/data.txt; rm README; chmod +x src/main.py", want: harvested(map[string]string{
		"new.txt": "file new\n", "src/data.txt": "file one\n2\n", "README": "deleted", "src/main.py": "file print('hello')\n", "run.sh": "absent", "link": "absent"})},
	{name: "control: nothing done", program: "touch README src/data.txt; cat README > /dev/null", want: harvested(map[string]string{"README": "absent", "src/data.txt": "absent"})},

	{name: "links to the host's files", program: "ln -s SECRET a; ln -s ../../../../../../SECRET b; ln -s / c; ln -sfn SECRET README; ln -s /proc/self/environ d", want: harvested(map[string]string{
		"c": "link /", "d": "link /proc/self/environ", "c/etc/passwd": "absent"})},
	{name: "a folder that became a link", program: "rm -r src; ln -s /etc src", want: harvested(map[string]string{"src": "link /etc", "src/passwd": "absent", "src/main.py": "deleted"})},
	{name: "links in a circle", program: "ln -s . self; ln -s loop loop; mkdir d; ln -s .. d/up", want: harvested(map[string]string{"self": "link .", "loop": "link loop", "d/up": "link ..", "self/README": "absent"})},
	{name: "hard links", program: "echo y > one; ln one two; ln /etc/passwd p || true; ln README r", want: harvested(map[string]string{"one": "file y\n", "two": "file y\n", "p": "absent", "r": "file a project\n"})},
	{name: "a pipe", program: "rm README; mkfifo README fifo", want: harvested(map[string]string{"README": "skipped fifo", "fifo": "skipped fifo"})},
	{name: "a socket", program: "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")'", want: harvested(map[string]string{"sock": "skipped socket"})},
	{name: "a device or a whiteout", program: "mknod w c 0 0; mknod b b 8 0; mknod m c 1 1; true", want: harvested(map[string]string{"w": "skipped device / absent", "README": "absent", "b": "absent", "m": "absent"})},
	{name: "a huge sparse file", program: "truncate -s 500G sparse; echo x > small", want: harvested(map[string]string{"sparse": "skipped too large", "small": "file x\n"}), limits: sandbox.Limits{FileSize: 1 << 40}},
	{name: "hostile names", program: "printf x > $'new\\nline'; printf x > $'\\xff\\xfe'; printf x > ' \"q\" \\ '; printf x > ./-n; printf x > ./--output=x; printf x > './:(top)y'; printf x > \"$(printf 'n%.0s' {1..250})\"", want: harvested(map[string]string{
		"new\nline": "file x", "\xff\xfe": "file x", ` "q" \ `: "file x", "-n": "file x", "--output=x": "file x", ":(top)y": "file x", strings.Repeat("n", 250): "file x"})},
	{name: "folders too deep", program: python("import os\nfor i in range(300):\n    os.mkdir('d'); os.chdir('d')\nopen('bottom', 'w').close()"), want: harvested(map[string]string{"README": "absent", strings.Repeat("d/", 127) + "d": "skipped too deep"})},
	{name: "locked folders", program: "mkdir -p p/q; echo x > p/q/f; chmod 000 p/q/f p/q p src", want: harvested(map[string]string{"p/q/f": "file x\n", "src/main.py": "absent"})},
	{name: "bits that give rights", program: "cp /bin/true t; chmod 6755 t; mkdir s; chmod 1777 s; echo x > s/f; chmod 7777 s/f", want: harvested(map[string]string{"s/f": "file x\n"})},
	{name: "attributes of an overlay", program: python("import os\nfor name in ('trusted.overlay.whiteout', 'user.overlay.whiteout', 'user.overlay.opaque', 'security.capability'):\n    try: os.setxattr('README', name, b'y')\n    except OSError: pass"), want: harvested(map[string]string{"README": "absent"})},
	{name: "names of a whiteout", program: "touch .wh.README .wh..wh..opq", want: harvested(map[string]string{"README": "absent", ".wh.README": "file ", ".wh..wh..opq": "file "})},

	{name: "git: hooks", program: gitTrap(`for h in pre-commit post-checkout post-index-change post-commit reference-transaction; do printf '#!/bin/sh\ntouch TOUCH\n' > .git/hooks/$h; chmod +x .git/hooks/$h; done`), want: harvested(seen)},
	{name: "git: hooks elsewhere", program: gitTrap(`printf '#!/bin/sh\ntouch TOUCH\n' > pre-commit; chmod +x pre-commit; git config core.hooksPath .`), want: harvested(seen)},
	{name: "git: a file system monitor", program: gitTrap(`git config core.fsmonitor 'touch TOUCH'`), want: harvested(seen)},
	{name: "git: filters", program: gitTrap(`git config filter.x.clean 'touch TOUCH; cat'; git config filter.x.process 'touch TOUCH'; git config filter.x.required true; echo '* filter=x' > .gitattributes`), want: harvested(seen)},
	{name: "git: an external diff and textconv", program: gitTrap(`git config diff.external 'touch TOUCH'; git config diff.x.textconv 'touch TOUCH; cat'; echo '* diff=x' > .gitattributes`), want: harvested(seen)},
	{name: "git: included configuration", program: gitTrap(`printf '[core]\n\tfsmonitor = touch TOUCH\n' > evil; git config include.path ../evil`), want: harvested(seen)},
	{name: "git: changes it is told to ignore", program: gitTrap(`git update-index --assume-unchanged src/data.txt; git update-index --skip-worktree src/main.py; echo 'x' > src/main.py; echo hidden > .git/info/exclude; echo x > hidden`),
		want: harvested(map[string]string{"src/data.txt": "file changed\n", "src/main.py": "file x\n", "hidden": "file x\n", ".git/info/exclude": "absent"})},
	{name: "git: changes that are committed", program: gitTrap(`git add -A; git commit -qm hidden`), want: harvested(seen)},
	{name: "git: replaced objects", program: gitTrap(`git replace HEAD $(git commit-tree HEAD^{tree} -m x); git gc -q`), want: harvested(seen)},
	{name: "git: a file in place of the folder", program: gitTrap(`mv .git elsewhere; echo 'gitdir: elsewhere' > .git`), want: harvested(map[string]string{"src/data.txt": "file changed\n", ".git": "absent"})},
	{name: "git: a corrupt repository", program: gitTrap(`rm -r .git/objects .git/HEAD; head -c 100 /dev/urandom > .git/index`), want: harvested(seen)},
	{name: "git: a repository inside", program: gitTrap(`mkdir sub; cd sub; git init -q .; echo x > f; git add f; git commit -qm x; printf '#!/bin/sh\ntouch TOUCH\n' > .git/hooks/post-checkout`), want: harvested(map[string]string{"src/data.txt": "file changed\n", "sub/f": "file x\n", "sub/.git/HEAD": "absent"})},
	{name: "git: a submodule", program: gitTrap(`printf '[submodule "m"]\n\tpath = m\n\turl = ext::sh -c "touch TOUCH"\n\tupdate = !touch TOUCH\n' > .gitmodules; git update-index --add --cacheinfo 160000,$(git rev-parse HEAD),m`), want: harvested(seen)},
	{name: "git: other encodings and ends of lines", program: gitTrap(`printf '* text eol=crlf working-tree-encoding=UTF-16 ident export-subst\n' > .gitattributes; git config core.autocrlf true; printf '$Id$\r\n' > crlf`), want: harvested(map[string]string{
		"src/data.txt": "file changed\n", "crlf": "file $Id$\r\n"})},
}

// gitTrap makes the workspace a repository, changes src/data.txt, and then sets
// a trap for whoever runs git there.
func gitTrap(trap string) string {
	return "git init -q . && git add -A && git commit -qm x && echo changed > src/data.txt\n" + trap + "\ntrue"
}

// seen: whatever the trap, the change is found as it is.
var seen = map[string]string{"src/data.txt": "file changed\n", ".git/config": "absent", ".git/HEAD": "absent"}
