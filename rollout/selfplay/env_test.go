package selfplay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ssr-go/ssr/rollout"
	"github.com/ssr-go/ssr/sandbox"
)

func call1(name, body string) rollout.Action {
	return rollout.Action{Text: "<tool: " + name + ">\n" + body + "\n</tool>", TurnsLeft: 9, TokensLeft: 1000}
}

// step takes a turn that must not end the episode and returns what the policy sees.
func step(t *testing.T, e rollout.Env, a rollout.Action) string {
	t.Helper()
	fb, err := e.Step(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	if fb.Done {
		t.Fatalf("%q ended the episode as %s", a.Text, fb.Outcome)
	}
	return fb.Text
}

func startEnv(t *testing.T, e rollout.Env) []rollout.Message {
	t.Helper()
	messages, err := e.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return messages
}

func TestTools(t *testing.T) {
	repo := openRepo(t, gitRepo(t, calcFiles))
	opts := EnvOptions{Backend: localBackend(t), ObservationBytes: 400, Limits: sandbox.Limits{Command: 3 * time.Second, Output: 64 << 10}}
	e := NewInjectorEnv(opts, repo, Injection{Strategy: Removal}, "test")
	startEnv(t, e)

	const left = "[9 turns and 1000 tokens left]"
	for _, c := range []struct {
		name, tool, body, want string
	}{
		{"output", ToolBash, "echo one; echo two >&2", "one\ntwo\n" + left},
		{"no output", ToolBash, "true", left},
		{"exit status", ToolBash, "echo x; exit 3", "x\n[exit status 3]\n" + left},
		{"state is left", ToolBash, "cd calc; export WORD=kept", left},
		{"state is kept", ToolBash, "pwd; echo $WORD", "/workspace/calc\nkept\n" + left},
		{"deadline", ToolBash, "echo before; sleep 100", "before\n[killed after 3s]\n" + left},
		{"state survives a kill", ToolBash, "pwd", "/workspace/calc\n" + left},
		{"stdin is empty", ToolBash, "cat; cd /workspace", left},
		{"durations and addresses", ToolBash, "echo 'Ran 3 tests in 0.017s'; echo 'at 0x7f00deadbeef'; echo 'x = 17'", "Ran 3 tests in 0.000s\nat 0x7f0000000000\nx = 17\n" + left},
		{"not text", ToolBash, `printf 'a\xffb\x00c\n'`, "a\uFFFDbc\n" + left},

		{"edit", ToolEdit, "calc/text.py\n<<<<<<< SEARCH\n    return s.upper() + \"!\"\n=======\n    s = s.upper()\n    return s\n>>>>>>> REPLACE",
			"1\t\"\"\"Text.\"\"\"\n2\t\n3\t\n4\tdef shout(s):\n5\t    s = s.upper()\n6\t    return s\n7\t\n8\t\n9\tdef initials(s):\n10\t    return \"\".join(w[0] for w in s.split())\n" + left},
		{"edit removes lines", ToolEdit, "calc/text.py\n<<<<<<< SEARCH\n    s = s.upper()\n=======\n>>>>>>> REPLACE",
			"1\t\"\"\"Text.\"\"\"\n2\t\n3\t\n4\tdef shout(s):\n5\t    return s\n6\t\n7\t\n8\tdef initials(s):\n9\t    return \"\".join(w[0] for w in s.split())\n" + left},
		{"edit finds nothing", ToolEdit, "calc/text.py\n<<<<<<< SEARCH\nnowhere\n=======\n>>>>>>> REPLACE", "[error: the SEARCH text does not occur in calc/text.py]\n" + left},
		{"edit twice", ToolEdit, "tests/test_text.py\n<<<<<<< SEARCH\nself.assertEqual\n=======\nx\n>>>>>>> REPLACE", "[error: the SEARCH text occurs 2 times; add lines until it is unique in tests/test_text.py]\n" + left},
		{"edit of no file", ToolEdit, "calc/none.py\n<<<<<<< SEARCH\nx\n=======\n>>>>>>> REPLACE", "[error: calc/none.py does not exist]\n" + left},
		{"edit of a folder", ToolEdit, "calc\n<<<<<<< SEARCH\nx\n=======\n>>>>>>> REPLACE", "[error: calc is not a regular file]\n" + left},
		{"edit outside", ToolEdit, "../etc/passwd\n<<<<<<< SEARCH\nx\n=======\n>>>>>>> REPLACE", "[error: path \"../etc/passwd\" is outside /workspace]\n" + left},
		{"edit without a block", ToolEdit, "calc/text.py\nhello", "[error: unexpected text outside the block: \"hello\"]\n" + left},

		{"create", ToolCreate, "new/file.txt\nhello", "created new/file.txt, 1 lines\n" + left},
		{"create again", ToolCreate, "new/file.txt\nhello", "[error: new/file.txt exists already; change it with edit]\n" + left},
		{"create by absolute path", ToolCreate, "/workspace/abs.txt\nhello", "created abs.txt, 1 lines\n" + left},
		{"create outside", ToolCreate, "/etc/motd\nhello", "[error: path \"/etc/motd\" is outside /workspace]\n" + left},
		{"create in .git", ToolCreate, ".git/hooks/pre-commit\nhello", "[error: files below .git cannot be written with this tool]\n" + left},
		{"link out", ToolBash, "ln -s /tmp out; cat new/file.txt abs.txt", "hello\nhello\n" + left},
		{"create through the link", ToolCreate, "out/x\nhello", "[error: out/x is outside the workspace]\n" + left},
		{"edit through a link", ToolBash, "ln -s /etc/hostname h; ln -s calc/text.py inner", left},
		{"edit out through a link", ToolEdit, "h\n<<<<<<< SEARCH\nx\n=======\n>>>>>>> REPLACE", "[error: h is outside the workspace]\n" + left},

		{"unknown tool", "dance", "", "[error: no tool is called \"dance\"; there are bash, edit, create and submit]\n" + left},
		{"submit of two files", ToolSubmit, "a\nb", "[error: submit names 2 files; give the paths of all five (test_script.sh, test_files.txt, test_parser.py, bug_inject.diff, test_weaken.diff), one a line, or none]\n" + left},
		{"submit of nothing", ToolSubmit, "", "[error: test_script.sh: missing; nothing was submitted]\n" + left},
	} {
		got := step(t, e, call1(c.tool, c.body))
		if got != c.want {
			t.Errorf("%s: saw\n%s\nwant\n%s", c.name, got, c.want)
		}
	}

	long := step(t, e, call1(ToolBash, "seq 1 1000"))
	if !strings.HasPrefix(long, "1\n2\n3\n") || !strings.Contains(long, "\n1000\n"+left) || !strings.Contains(long, "bytes cut") || len(long) > 500 {
		t.Errorf("a long output was shown as %q", long)
	}
	flood := step(t, e, call1(ToolBash, "yes"))
	if !strings.Contains(flood, "[killed: more than 65536 bytes of output]") {
		t.Errorf("a flood was answered with %q", flood)
	}
	for text, want := range map[string]string{
		"I think I am done.": "no tool call",
		"<tool: bash>\nls":   "unterminated",
		"<tool: bash>\nls\n</tool>\n<tool: bash>\nls\n</tool>": "more than one",
	} {
		fb, err := e.Step(t.Context(), rollout.Action{Text: text, TurnsLeft: 1, TokensLeft: 1})
		if err != nil || fb.Tool != "" || fb.Done || !strings.Contains(fb.Text, want) {
			t.Errorf("%q was answered with %+v (%v), want %q and no tool", text, fb, err, want)
		}
	}
	if fb, _ := e.Step(t.Context(), rollout.Action{Text: "<tool: bash>\nls", Truncated: true}); !strings.Contains(fb.Text, "token limit") {
		t.Errorf("a cut turn was answered with %q", fb.Text)
	}
}

func TestInjectorSubmits(t *testing.T) {
	repo := openRepo(t, gitRepo(t, calcFiles))
	backend := localBackend(t)
	for name, c := range map[string]struct{ setup, submit string }{
		"usual names":     {`for f in test_script.sh test_files.txt test_parser.py bug_inject.diff test_weaken.diff; do echo $f > $f; done`, ""},
		"paper's names":   {`mkdir o; for f in test_script.sh test_files.txt parse_test_output.py bug_patch.diff test_patch.diff; do echo ${f} > o/$f; done`, "o/bug_patch.diff\no/test_patch.diff\no/test_script.sh\no/parse_test_output.py\no/test_files.txt"},
		"any other names": {`for f in a b c d e; do echo $f > $f.txt; done`, "a.txt\nb.txt\nc.txt\nd.txt\ne.txt"},
	} {
		t.Run(name, func(t *testing.T) {
			e := NewInjectorEnv(EnvOptions{Backend: backend}, repo, Injection{Strategy: Removal}, "test")
			startEnv(t, e)
			step(t, e, call1(ToolBash, c.setup))
			fb, err := e.Step(t.Context(), call1(ToolSubmit, c.submit))
			a, ok := e.Artifact()
			if err != nil || !fb.Done || fb.Outcome != OutcomeSubmitted || !ok {
				t.Fatalf("%+v, %v", fb, err)
			}
			want := map[string][2]string{"usual names": {"bug_inject.diff\n", "test_files.txt\n"}, "paper's names": {"bug_patch.diff\n", "test_files.txt\n"}, "any other names": {"d\n", "b\n"}}[name]
			if got := [2]string{string(a.BugInject), string(a.TestFiles)}; got != want {
				t.Errorf("the injection and the list hold %q, want %q", got, want)
			}
		})
	}
}

func TestSubmittedLinksAndPipesAreRefused(t *testing.T) {
	repo := openRepo(t, gitRepo(t, calcFiles))
	e := NewInjectorEnv(EnvOptions{Backend: localBackend(t), Prompts: BriefPrompts()}, repo, Injection{Strategy: Removal}, "test")
	startEnv(t, e)
	step(t, e, call1(ToolBash, `for f in test_files.txt test_parser.py bug_inject.diff test_weaken.diff; do echo > $f; done; ln -s /etc/passwd test_script.sh`))
	if got := step(t, e, call1(ToolSubmit, "")); !strings.Contains(got, "outside the workspace") {
		t.Errorf("a link out of the workspace was answered with %q", got)
	}
	step(t, e, call1(ToolBash, `rm test_script.sh; mkfifo test_script.sh`))
	if got := step(t, e, call1(ToolSubmit, "")); !strings.Contains(got, "not a regular file") {
		t.Errorf("a pipe was answered with %q", got)
	}
	if _, ok := e.Artifact(); ok {
		t.Error("an artifact came of it")
	}
}

func TestSolverHandsInItsWorkingTree(t *testing.T) {
	repo := openRepo(t, gitRepo(t, calcFiles))
	backend := localBackend(t)
	bug := Bug{ID: "b", Artifact: calcArtifact(t, repo)}
	for name, end := range map[string]rollout.Action{
		"submit":       call1(ToolSubmit, ""),
		"simply ended": {Text: "That was all.", TurnsLeft: 1, TokensLeft: 9},
	} {
		t.Run(name, func(t *testing.T) {
			e := NewSolverEnv(EnvOptions{Backend: backend}, repo, bug, "test")
			messages := startEnv(t, e)
			task := messages[len(messages)-1].Content
			spec, err := repo.Specification(t.Context(), bug.Artifact)
			if err != nil || !strings.Contains(task, strings.TrimSpace(string(spec))) {
				t.Errorf("the task lacks the specification (%v):\n%s", err, task)
			}
			step(t, e, call1(ToolCreate, "calc/extra.py\nX = 1"))
			fb, err := e.Step(t.Context(), end)
			patch, ok := e.Patch()
			if err != nil || !fb.Done || !ok || !strings.Contains(string(patch), "+X = 1") || strings.Contains(string(patch), ".git/") {
				t.Errorf("%+v, %v, patch %v:\n%s", fb, err, ok, patch)
			}
		})
	}
	t.Run("again", func(t *testing.T) {
		e := NewSolverEnv(EnvOptions{Backend: backend, Submissions: 2}, repo, bug, "test")
		startEnv(t, e)
		step(t, e, call1(ToolCreate, "calc/extra.py\nX = 1"))
		step(t, e, call1(ToolSubmit, ""))
		step(t, e, call1(ToolBash, "echo X = 2 > calc/extra.py"))
		if fb, err := e.Step(t.Context(), call1(ToolSubmit, "")); err != nil || !fb.Done {
			t.Fatalf("%+v, %v", fb, err)
		}
		if patch, _ := e.Patch(); !strings.Contains(string(patch), "+X = 2") {
			t.Errorf("the last submission does not count:\n%s", patch)
		}
	})
}

func TestPromptGoldens(t *testing.T) {
	update := os.Getenv("UPDATE_GOLDEN") != ""
	spec := "diff --git a/t/test_a.py b/t/test_a.py\nindex 1..2 100644\n--- a/t/test_a.py\n+++ b/t/test_a.py\n@@ -1,2 +1,4 @@ class A(TestCase):\n     pass\n \n+    def test_x(self):\n+        self.assertTrue(a.x())\n"
	for _, set := range []string{"full", "brief"} {
		prompts, err := LoadPrompts(set, "")
		if err != nil {
			t.Fatal(err)
		}
		opts := EnvOptions{Prompts: prompts}
		issue, err := prompts.render(specificationTemplate, specificationData{Diff: spec})
		if err != nil {
			t.Fatal(err)
		}
		cases := map[string]func() ([]rollout.Message, error){
			"solver": func() ([]rollout.Message, error) { return IssuePrompt(opts, issue) },
		}
		for _, s := range []Strategy{Removal, History, Direct} {
			cases["injector-"+string(s)] = func() ([]rollout.Message, error) {
				return InjectorPrompt(opts, Injection{Strategy: s, Requirements: Requirements{5, 1, 2}, Target: &Target{"quill/spans.py", "overlap"}})
			}
		}
		for name, make := range cases {
			messages, err := make()
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			for _, m := range messages {
				fmt.Fprintf(&b, "=== %s\n%s\n", m.Role, m.Content)
			}
			file := filepath.Join("testdata", "prompts", set+"-"+name+".txt")
			if update {
				os.MkdirAll(filepath.Dir(file), 0o755)
				os.WriteFile(file, []byte(b.String()), 0o644)
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if b.String() != string(want) {
				t.Errorf("%s (UPDATE_GOLDEN=1 rewrites it) is now\n%s", file, b.String())
			}
		}
	}
}

func TestPromptsAreReplaceable(t *testing.T) {
	dir := t.TempDir()
	if err := WritePrompts("brief", dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "injector.tmpl"), []byte("mine: {{.Strategy}}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := WritePrompts("brief", dir); err != nil { // leaves what is there
		t.Fatal(err)
	}
	p, err := LoadPrompts("brief", dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := InjectorPrompt(EnvOptions{Prompts: p}, Injection{Strategy: History})
	if err != nil || len(m) != 1 || m[0].Content != "mine: history" {
		t.Errorf("%v, %v", m, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "issue.tmpl"), []byte("{{.Isue}}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if p, err = LoadPrompts("brief", dir); err != nil {
		t.Fatal(err)
	}
	if _, err := IssuePrompt(EnvOptions{Prompts: p}, "x"); err == nil || !strings.Contains(err.Error(), "issue.tmpl") {
		t.Errorf("a wrong field gives %v, want an error that names the file", err)
	}
	if _, err := LoadPrompts("medium", ""); err == nil {
		t.Error("an unknown set was accepted")
	}
}

// lostBackend cannot start anything.
type lostBackend struct{ sandbox.Backend }

func (lostBackend) Start(context.Context, sandbox.Spec) (sandbox.Sandbox, error) {
	return nil, fmt.Errorf("%w: host out of disk", sandbox.ErrInfrastructure)
}

func TestALostSandboxIsInfrastructure(t *testing.T) {
	repo := openRepo(t, gitRepo(t, calcFiles))
	e := NewInjectorEnv(EnvOptions{Backend: lostBackend{}}, repo, Injection{Strategy: Removal}, "test")
	defer e.Close()
	if _, err := e.Start(t.Context()); !errors.Is(err, sandbox.ErrInfrastructure) {
		t.Errorf("%v does not wrap ErrInfrastructure", err)
	}
}
