package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/docker"
	"github.com/ssr-go/ssr/sandbox/environment"
)

type envCmd struct {
	Add   envAddCmd   `cmd:"" help:"Keep a root folder, a tar file of one, or an image under a name."`
	List  envListCmd  `cmd:"" help:"List the environments."`
	Check envCheckCmd `cmd:"" help:"Run tests several times on fresh copies: do they pass, and always?"`
}

// storeFlag is where environments are kept.
type storeFlag struct {
	Store string `placeholder:"DIR" help:"Folder of the environments, where it is not the usual one."`
}

func (f storeFlag) open() (environment.Store, error) {
	if f.Store != "" {
		return environment.Store{Dir: f.Store}, nil
	}
	return environment.DefaultStore()
}

type envAddCmd struct {
	Name   string            `arg:"" help:"Name of the environment."`
	Rootfs string            `placeholder:"DIR|FILE.tar" help:"A root folder, or a tar file to unpack (docker export, mmdebstrap)."`
	Image  string            `help:"An image that the container engine has."`
	Env    map[string]string `placeholder:"KEY=VALUE" mapsep:"none" help:"A variable that its commands have, such as a PATH to its toolchain. May be repeated."`
	storeFlag
}

func (c *envAddCmd) Run(o output) error {
	s, err := c.open()
	if err != nil {
		return err
	}
	e, err := s.Add(environment.Environment{Name: c.Name, Rootfs: c.Rootfs, Image: c.Image, Env: c.Env})
	if err != nil {
		return err
	}
	return check(fmt.Fprintf(o.out, "%s: %s %s\n", e.Name, e.Backend(), e.Rootfs+e.Image))
}

type envListCmd struct {
	storeFlag
	jsonFlag
}

func (c *envListCmd) Run(o output) error {
	s, err := c.open()
	if err != nil {
		return err
	}
	list, err := s.List()
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(o.out, list)
	}
	for _, e := range list {
		fmt.Fprintf(o.out, "%-20s %-8s %s\n", e.Name, e.Backend(), e.Rootfs+e.Image)
	}
	return nil
}

type envCheckCmd struct {
	Name      string    `arg:"" help:"The environment."`
	Workspace string    `required:"" type:"existingdir" help:"The repository; each run gets a copy."`
	Runs      int       `default:"5" help:"How often the tests are run."`
	Timeout   limitTime `default:"10m" help:"Wall-clock limit of a run."`
	Command   []string  `arg:"" help:"The command that runs the tests, after --."`
	storeFlag
	jsonFlag
}

// Run ends with status 1 when the tests fail or two runs differ.
func (c *envCheckCmd) Run(ctx context.Context, o output) (err error) {
	if c.Runs < 1 {
		return fmt.Errorf("--runs is %d; it must be positive", c.Runs)
	}
	s, err := c.open()
	if err != nil {
		return err
	}
	e, err := s.Get(c.Name)
	if err != nil {
		return err
	}
	b, err := sandboxConfig{Backend: e.Backend(), Rootfs: e.Rootfs, Image: e.Image, Env: e.Env}.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	limit := time.Duration(c.Timeout)
	spec := sandbox.Spec{Dir: c.Workspace, Owner: "ssr-env-check", Limits: sandbox.Limits{Command: limit, CPU: 2 * limit, Lifetime: limit + time.Minute}}
	r, err := environment.Check(ctx, b, spec, sandbox.Cmd{Args: c.Command}, c.Runs)
	if err != nil {
		return err
	}
	switch {
	case e.Image != "":
		r.Bytes, err = docker.ImageSize(ctx, "", e.Image)
	case e.Rootfs != "/": // this machine is no size of an environment
		r.Bytes, err = environment.Size(e.Rootfs)
	}
	if err != nil {
		return err
	}
	if c.JSON {
		err = printJSON(o.out, r)
	} else {
		err = c.print(o, r)
	}
	if err == nil && !r.OK() {
		return errRefused
	}
	return err
}

func (c *envCheckCmd) print(o output, r environment.Report) error {
	if r.Output != "" {
		fmt.Fprintln(o.err, strings.ToValidUTF8(r.Output, "\uFFFD"))
	}
	fmt.Fprintf(o.out, "%d runs, by exit status: %v; %d ended by a limit\n", r.Runs, r.Exits, r.Limits)
	if r.Passing+r.Failing+len(r.Unstable) == 0 {
		fmt.Fprintln(o.out, "tests: none is told apart, as the output is none of pytest, unittest or go test, verbose")
	} else {
		fmt.Fprintf(o.out, "tests: %d always pass, %d always fail, %d differ from run to run\n", r.Passing, r.Failing, len(r.Unstable))
	}
	for _, t := range r.Unstable {
		fmt.Fprintf(o.out, "  unstable: %s\n", t)
	}
	fmt.Fprintf(o.out, "a run takes %.2f s at the median (%.2f to %.2f), %.2f s of processor\n", r.Median, r.Fastest, r.Slowest, r.CPUSeconds)
	if r.Bytes > 0 {
		fmt.Fprintf(o.out, "the system takes %d MiB\n", r.Bytes>>20)
	}
	return nil
}
