package main

import (
	_ "embed"
	"fmt"

	"github.com/ssr-go/ssr/rollout/selfplay"
)

type configCmd struct {
	Default configDefaultCmd `cmd:"" help:"Print every setting with its default and what it means."`
	Check   configCheckCmd   `cmd:"" help:"Read a configuration and print it with everything resolved."`
}

// defaultYAML is defaultConfig with what each field means.
//
//go:embed default.yaml
var defaultYAML []byte

type configDefaultCmd struct{}

func (configDefaultCmd) Run(o output) error { return check(o.out.Write(defaultYAML)) }

type configCheckCmd struct {
	File string   `arg:"" type:"existingfile" help:"The configuration."`
	Set  []string `help:"Override a field." placeholder:"KEY.KEY=VALUE" sep:"none"`
}

func (c *configCheckCmd) Run(o output) error {
	conf, err := readConfig(c.File, c.Set)
	if err != nil {
		return err
	}
	if err := refuse(conf.check()); err != nil {
		return err
	}
	data, err := conf.marshal()
	if err != nil {
		return err
	}
	return check(o.out.Write(data))
}

type promptsCmd struct {
	Set string `default:"full" enum:"full,brief" help:"The set to begin with: full or brief."`
	Dir string `arg:"" type:"path" help:"Where to write the templates; existing files are left alone."`
}

func (c *promptsCmd) Run(o output) error {
	if err := selfplay.WritePrompts(c.Set, c.Dir); err != nil {
		return err
	}
	return check(fmt.Fprintf(o.out, "wrote the %s prompts to %s; use them with episodes.prompts_dir\n", c.Set, c.Dir))
}
