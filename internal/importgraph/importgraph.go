package importgraph

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Package is what the source of one folder imports, whatever its build tags.
type Package struct {
	// Path is relative to the module, "." for its root.
	Path string
	// Imports of the non-test files, and of the test files, sorted. Those of
	// this module are relative to it, with "./" in front.
	Imports, TestImports []string
	// Test says that the package exists for tests: its name ends in "test".
	Test bool
}

// Load reads the imports of every package below the root of a module. Folders
// that the go command passes over, and those with a go.mod of their own, are
// left out.
func Load(module fs.FS) (map[string]*Package, error) {
	graph := map[string]*Package{}
	err := fs.WalkDir(module, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return skip(module, name)
		}
		if path.Ext(name) != ".go" {
			return nil
		}
		return load(module, name, graph)
	})
	for _, p := range graph {
		p.Imports = sorted(p.Imports)
		p.TestImports = sorted(p.TestImports)
	}
	return graph, err
}

func skip(module fs.FS, dir string) error {
	if dir == "." {
		return nil
	}
	base := path.Base(dir)
	if base == "testdata" || base == "vendor" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
		return fs.SkipDir
	}
	if _, err := fs.Stat(module, path.Join(dir, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

func load(module fs.FS, name string, graph map[string]*Package) error {
	src, err := fs.ReadFile(module, name)
	if err != nil {
		return err
	}
	file, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly)
	if err != nil {
		return fmt.Errorf("imports of %s: %w", name, err)
	}
	dir := path.Dir(name)
	p := graph[dir]
	if p == nil {
		p = &Package{Path: dir}
		graph[dir] = p
	}
	test := strings.HasSuffix(name, "_test.go")
	if !test && strings.HasSuffix(file.Name.Name, "test") {
		p.Test = true
	}
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return fmt.Errorf("imports of %s: %w", name, err)
		}
		if inner, ok := strings.CutPrefix(imported, Module+"/"); ok {
			imported = "./" + inner
		}
		if test {
			p.TestImports = append(p.TestImports, imported)
		} else {
			p.Imports = append(p.Imports, imported)
		}
	}
	return nil
}

func sorted(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}

// Violations returns one line for each breach of the policy, sorted.
func Violations(graph map[string]*Package) []string {
	var found []string
	report := func(format string, args ...any) {
		found = append(found, fmt.Sprintf(format, args...))
	}
	for _, p := range graph {
		room, ok := roomOf(p.Path)
		if !ok {
			report("%s has no room: add it to internal/importgraph/policy.go", p.Path)
			continue
		}
		for _, imported := range p.Imports {
			inner, ours := strings.CutPrefix(imported, "./")
			switch {
			case !ours:
				if room.Pure && native(imported) {
					report("%s is pure and imports %s", p.Path, imported)
				}
			case graph[inner] == nil:
				report("%s imports %s, which is not there", p.Path, inner)
			case !room.allows(p.Path, inner):
				report("%s may not import %s", p.Path, inner)
			}
			if ours && graph[inner] != nil && graph[inner].Test && !p.Test {
				report("%s imports %s, which is for tests only", p.Path, inner)
			}
		}
		// A test may look across rooms, but not take a pure room out of reach
		// of a build without cgo.
		for _, imported := range p.TestImports {
			if room.Pure && native(imported) {
				report("%s is pure and its test imports %s", p.Path, imported)
			}
			if inner, ours := strings.CutPrefix(imported, "./"); ours && room.Pure {
				if other, ok := roomOf(inner); ok && !other.Pure {
					report("%s is pure and its test imports %s", p.Path, inner)
				}
			}
		}
		for _, reached := range reach(graph, p.Path) {
			if other, ok := roomOf(reached); ok && room.Pure && !other.Pure {
				report("%s is pure and reaches %s", p.Path, reached)
			}
			for _, never := range Never {
				if matches(never.From, p.Path) && matches(never.To, reached) {
					report("%s must never reach %s", p.Path, reached)
				}
			}
		}
	}
	return sorted(found)
}

// roomOf finds the room of a package: its own, or the nearest one above that
// takes in what is below it.
func roomOf(pkg string) (best Room, found bool) {
	depth := -1
	for _, room := range Rooms {
		if room.Path == pkg {
			return room, true
		}
		if d := strings.Count(room.Path, "/"); d > depth && matches(room.Path, pkg) {
			best, found, depth = room, true, d
		}
	}
	return best, found
}

func (r Room) allows(from, to string) bool {
	if strings.HasPrefix(from, to+"/") {
		return true
	}
	if room, ok := roomOf(to); ok && room.Path == helpers {
		return true
	}
	return slices.ContainsFunc(r.May, func(pattern string) bool { return matches(pattern, to) })
}

// matches follows the go command: "a/..." matches a and everything below it.
func matches(pattern, pkg string) bool {
	if pattern == "..." {
		return true
	}
	if prefix, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == prefix || strings.HasPrefix(pkg, prefix+"/")
	}
	return pkg == pattern
}

func native(imported string) bool {
	return slices.ContainsFunc(Native, func(pattern string) bool { return matches(pattern+"/...", imported) })
}

// reach lists the packages of this module that the non-test code of start
// imports, directly or not.
func reach(graph map[string]*Package, start string) []string {
	seen := map[string]bool{}
	queue := []string{start}
	for len(queue) > 0 {
		p := graph[queue[0]]
		queue = queue[1:]
		if p == nil {
			continue
		}
		for _, imported := range p.Imports {
			if inner, ours := strings.CutPrefix(imported, "./"); ours && !seen[inner] {
				seen[inner] = true
				queue = append(queue, inner)
			}
		}
	}
	list := make([]string, 0, len(seen))
	for pkg := range seen {
		list = append(list, pkg)
	}
	return sorted(list)
}
