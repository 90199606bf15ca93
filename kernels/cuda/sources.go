package cuda

import (
	"embed"
	"path"
	"regexp"
	"strings"
)

//go:embed src
var sources embed.FS

// Program is one source file and the kernels in it.
type Program struct {
	Name, Source string
	Kernels      []string
}

// HeaderName is how programs include Header.
const HeaderName = "common.cuh"

// Header is what every program includes.
func Header() string { return read(HeaderName) }

var kernel = regexp.MustCompile(`(?m)^(?:\s*)KERNEL void (\w+)(?:##name)?\(`)

// Programs are the sources, to be compiled one by one.
func Programs() []Program {
	files, err := sources.ReadDir("src")
	if err != nil {
		panic(err) // embedded
	}
	var out []Program
	for _, f := range files {
		if path.Ext(f.Name()) != ".cu" {
			continue
		}
		p := Program{Name: f.Name(), Source: read(f.Name())}
		for _, m := range kernel.FindAllStringSubmatch(p.Source, -1) {
			if name := m[1]; strings.HasSuffix(name, "_") { // written once for every DType
				p.Kernels = append(p.Kernels, name+F32.String(), name+BF16.String())
			} else {
				p.Kernels = append(p.Kernels, name)
			}
		}
		out = append(out, p)
	}
	return out
}

func read(name string) string {
	text, err := sources.ReadFile("src/" + name)
	if err != nil {
		panic(err) // embedded
	}
	return string(text)
}
