package sandbox

import "maps"

// HomeDir is $HOME inside every sandbox: empty at the start, outside the
// workspace, thrown away with the sandbox.
const HomeDir = "/tmp/home"

// BaseEnv is the environment that every backend starts from; Spec.Env and then
// Cmd.Env are laid over it. It is the same on every host, so that a command's
// output depends on the workspace alone.
func BaseEnv() map[string]string {
	return map[string]string{
		"PATH":   "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME":   HomeDir,
		"TMPDIR": "/tmp",
		"LANG":   "C.UTF-8",
		"LC_ALL": "C.UTF-8",
		"TZ":     "UTC",
		"TERM":   "dumb",
		"PAGER":  "cat",
		"USER":   "agent",
		"SHELL":  "/bin/bash",

		"PYTHONHASHSEED":          "0",
		"PYTHONDONTWRITEBYTECODE": "1",
		"PYTHONNOUSERSITE":        "1",

		"GIT_CONFIG_NOSYSTEM": "1",
		"GIT_TERMINAL_PROMPT": "0",
		"GIT_PAGER":           "cat",
		"GIT_AUTHOR_NAME":     "agent",
		"GIT_AUTHOR_EMAIL":    "agent@sandbox.invalid",
		"GIT_AUTHOR_DATE":     "2000-01-01T00:00:00Z",
		"GIT_COMMITTER_NAME":  "agent",
		"GIT_COMMITTER_EMAIL": "agent@sandbox.invalid",
		"GIT_COMMITTER_DATE":  "2000-01-01T00:00:00Z",
	}
}

// Environ lays the given environments over BaseEnv, later ones winning.
func Environ(layers ...map[string]string) map[string]string {
	env := BaseEnv()
	for _, l := range layers {
		maps.Copy(env, l)
	}
	return env
}
