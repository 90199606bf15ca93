package importgraph

import (
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// TestModule holds the policy over the source of this module.
func TestModule(t *testing.T) {
	graph, err := Load(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	for _, known := range []string{"rollout", "sandbox", "rl", "internal/importgraph"} {
		if graph[known] == nil {
			t.Fatalf("the walk did not find %s; it found %d packages", known, len(graph))
		}
	}
	for _, line := range Violations(graph) {
		t.Error(line)
	}
}

// TestViolations shows that each rule can be broken, so that silence of
// TestModule means something.
func TestViolations(t *testing.T) {
	source := func(pkg string, imports ...string) *fstest.MapFile {
		text := "package " + pkg + "\n"
		for _, name := range imports {
			text += "import _ \"" + strings.Replace(name, "./", Module+"/", 1) + "\"\n"
		}
		return &fstest.MapFile{Data: []byte(text)}
	}
	clean := func() fstest.MapFS {
		return fstest.MapFS{
			"kernels/torch/t.go":         source("torch", "C", "github.com/sugarme/gotch/libtch"),
			"kernels/torch/t_cuda.go":    {Data: []byte("//go:build cuda\n\npackage torch\n")},
			"model/m.go":                 source("model", "./kernels/torch"),
			"model/gen/g.go":             source("gen"),
			"model/engine/e.go":          source("engine", "./model", "./model/gen"),
			"sandbox/s.go":               source("sandbox", "os"),
			"sandbox/sandboxtest/t.go":   source("sandboxtest", "./sandbox", "testing"),
			"rollout/r.go":               source("rollout", "./model/gen", "./sandbox"),
			"rollout/r_test.go":          source("rollout_test", "./sandbox/sandboxtest"),
			"rl/rl.go":                   source("rl", "./rollout", "gorgonia.org/gorgonia"),
			"internal/text/t.go":         source("text"),
			"internal/ui/u.go":           source("ui", "./rollout", "./internal/text"),
			"cmd/ssr/main.go":            source("main", "./model/engine", "./rl"),
			"examples/embed/go.mod":      {Data: []byte("module example")},
			"examples/embed/main.go":     source("main", "./model/engine"),
			"testdata/broken/no.go":      {Data: []byte("not go")},
			".toolchain/include/case.go": {Data: []byte("not go")},
		}
	}
	cases := []struct {
		name, file string
		source     *fstest.MapFile
		want       string
	}{
		{"nothing wrong", "sandbox/more.go", source("sandbox"), ""},
		{"not in May", "rl/more.go", source("rl", "./sandbox"), "rl may not import sandbox"},
		{"behind a build tag", "rl/more.go", &fstest.MapFile{Data: []byte(
			"//go:build never\n\npackage rl\n\nimport _ \"" + Module + "/cmd/ssr\"\n")}, "rl may not import cmd/ssr"},
		{"cgo in a pure room", "rollout/more.go", source("rollout", "C"), "rollout is pure and imports C"},
		{"gotch in a pure room", "rl/more.go", source("rl", "github.com/sugarme/gotch/ts"), "rl is pure and imports github.com/sugarme/gotch/ts"},
		{"a name that only begins alike", "rl/more.go", source("rl", "gorgonia.org/cubic"), ""},
		{"cgo in a pure room's test", "rl/more_test.go", source("rl", "./model"), "rl is pure and its test imports model"},
		{"a test package in code", "sandbox/local/l.go", source("local", "./sandbox/sandboxtest"), "sandbox/local imports sandbox/sandboxtest, which is for tests only"},
		{"reached through another", "model/gen/more.go", source("gen", "./rl"), "model/engine must never reach rl"},
		{"sandbox to kernels", "sandbox/more.go", source("sandbox", "./kernels/torch"), "sandbox must never reach kernels/torch"},
		{"rl to engine", "rl/more.go", source("rl", "./model/engine"), "rl must never reach model/engine"},
		{"a helper", "rl/more.go", source("rl", "./internal/text"), ""},
		{"a helper that knows a room", "internal/text/more.go", source("text", "./rollout"), "internal/text may not import rollout"},
		{"an internal room that is no helper", "rl/more.go", source("rl", "./internal/ui"), "rl may not import internal/ui"},
		{"no room", "misc/m.go", source("misc"), "misc has no room: add it to internal/importgraph/policy.go"},
		{"a package that is not there", "model/more.go", source("model", "./model/safetensors"), "model imports model/safetensors, which is not there"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			module := clean()
			module[c.file] = c.source
			graph, err := Load(module)
			if err != nil {
				t.Fatal(err)
			}
			got := Violations(graph)
			if c.want == "" && len(got) > 0 {
				t.Errorf("violations of a clean module: %q", got)
			}
			if c.want != "" && !slices.Contains(got, c.want) {
				t.Errorf("violations %q lack %q", got, c.want)
			}
		})
	}
}
