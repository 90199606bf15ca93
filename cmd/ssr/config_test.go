package main

import (
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"
)

// What is written reads back equal, whatever a field holds.
func TestConfigRoundTrip(t *testing.T) {
	c := defaultConfig()
	c.Repo, c.Model, c.Run = "a: b", "~", "true"
	c.Seed = 1<<64 - 1
	c.Sandbox.Allow = []string{"null", "yes"}
	c.Train.MaskOutcomes = []string{"context"}
	c.Train.Loss.Length = 7
	data, err := c.marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseConfig([]document{{"c", data}})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(c, got); d != "" {
		t.Error(d)
	}
}

// No field is left out of the file by accident: every one has a name.
func TestConfigNamesEveryField(t *testing.T) {
	var walk func(v reflect.Type, path string)
	walk = func(v reflect.Type, path string) {
		for i := range v.NumField() {
			f := v.Field(i)
			if tag, _, _ := strings.Cut(f.Tag.Get("yaml"), ","); tag == "" || tag == "-" {
				t.Errorf("%s.%s has no yaml name", path, f.Name)
			}
			if f.Type.Kind() == reflect.Struct {
				walk(f.Type, path+"."+f.Name)
			}
		}
	}
	walk(reflect.TypeFor[config](), "config")
}

// The file that users read says what the code does, and names every field.
func TestDefaultYAML(t *testing.T) {
	read, err := parseConfig([]document{{"default.yaml", defaultYAML}})
	if err != nil {
		t.Fatal(err)
	}
	want, err := parseConfig(nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, read); d != "" {
		t.Error(d)
	}
	off := regexp.MustCompile(`(?m)^( *)# ((?:  )*[a-z_]+:(?: |$))`)
	all := off.ReplaceAll(defaultYAML, []byte("$1$2"))
	if _, err := parseConfig([]document{{"default.yaml, all on", all}}); err != nil {
		t.Error(err)
	}
	var have map[string]any
	if err := yaml.Load(all, &have); err != nil {
		t.Fatal(err)
	}
	var walk func(v reflect.Type, have map[string]any, path string)
	walk = func(v reflect.Type, have map[string]any, path string) {
		for i := range v.NumField() {
			f := v.Field(i)
			tag, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			value, ok := have[tag]
			if !ok {
				t.Errorf("default.yaml does not say %s.%s", path, tag)
			}
			// What an objective has, ssr objective show prints.
			if below, ok := value.(map[string]any); ok && f.Type.Kind() == reflect.Struct && tag != "loss" {
				walk(f.Type, below, path+"."+tag)
			}
		}
	}
	walk(reflect.TypeFor[config](), have, "")
}

func FuzzConfig(f *testing.F) {
	f.Add("seed: 1\ntrain: {steps: 3}\n", "game.alpha=0.5")
	f.Add("a: &x [*x]", "x={")
	f.Add("game:\n  strategies: {}\n", "game.strategies.direct=1")
	f.Fuzz(func(t *testing.T, file, set string) {
		docs := []document{{"f", []byte(file)}}
		if d, err := override(set); err == nil {
			docs = append(docs, d)
		}
		c, err := parseConfig(docs)
		if err != nil {
			return
		}
		data, err := c.marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseConfig([]document{{"again", data}})
		if err != nil {
			t.Fatalf("what was written is refused: %v\n%s", err, data)
		}
		if twice, err := again.marshal(); err != nil || string(twice) != string(data) {
			t.Fatalf("not a fixed point (%v):\n%s\n%s", err, data, twice)
		}
	})
}
