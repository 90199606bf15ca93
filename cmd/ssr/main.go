// Command ssr trains language models on software engineering by self-play:
// one policy breaks a repository and repairs it, in sandboxes.
//
// Exit status: 0 success; 1 the answer is no (a bug was refused); 2 an error;
// 130 interrupted. "ssr sandbox exec" ends with its command's status.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"reflect"
	"syscall"

	"github.com/alecthomas/kong"
)

const (
	exitRefused     = 1
	exitError       = 2
	exitInterrupted = 130
)

// errRefused ends a command whose result, already printed, is a no.
var errRefused = errors.New("refused")

// commands is the command line. Each command is a struct with its flags and a
// Run method that wires packages together and renders what they return.
type commands struct {
	Train      trainCmd      `cmd:"" help:"Train a policy by self-play on a repository."`
	Eval       evalCmd       `cmd:"" help:"Measure pass@1 of a policy on a fixed set of bugs."`
	Warmstart  warmstartCmd  `cmd:"" help:"Make a small policy that speaks the protocol, for a repository."`
	SFT        sftCmd        `cmd:"" name:"sft" help:"Fine-tune a policy on recorded episodes."`
	Bug        bugCmd        `cmd:"" help:"Validate, judge and look at bugs."`
	Sandbox    sandboxCmd    `cmd:"" help:"Run a command in a sandbox, and take the patch of a folder that an agent has had."`
	Env        envCmd        `cmd:"" help:"Keep systems to run tests in, and check how tests behave in them."`
	Model      modelCmd      `cmd:"" help:"Look at a model, tokenize, score and generate."`
	Serve      serveCmd      `cmd:"" help:"Answer OpenAI's API from a policy."`
	Trajectory trajectoryCmd `cmd:"" help:"Read the episodes of a run."`
	Run        runCmd        `cmd:"" help:"Summarise a run and draw its curves."`
	Objective  objectiveCmd  `cmd:"" help:"Look at objectives, and try them on a recorded batch."`
	Advantage  advantageCmd  `cmd:"" help:"Look at advantage estimators, and try them on recorded rewards."`
	Config     configCmd     `cmd:"" help:"Print and check configurations."`
	Prompts    promptsCmd    `cmd:"" help:"Write the prompt templates to a folder, to be edited."`
	Bench      benchCmd      `cmd:"" help:"Measure tokens and sandbox episodes per second."`
	Doctor     doctorCmd     `cmd:"" help:"Report what this machine offers, with advice for what is missing."`
}

// exitStatus ends a command that has printed its result with a status.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("status %d", int(s)) }

// output is where commands print: out for results, err for everything else.
type output struct{ out, err *os.File }

func main() { os.Exit(run(os.Args[1:], output{os.Stdout, os.Stderr})) }

// run is main without its process: it returns the exit status.
func run(args []string, o output) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second interrupt ends the process at once

	var c commands
	exited := -1
	parser, err := kong.New(&c,
		kong.Name("ssr"),
		kong.Description("Trains language models on software engineering by self-play (SSR, arXiv 2512.18552)."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Writers(o.out, o.err),
		kong.Exit(func(code int) { exited = code; panic(exitNow{}) }),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(o),
		kong.PostBuild(func(k *kong.Kong) error { return kong.Visit(k.Model, placeHolder) }),
	)
	if err != nil {
		panic(err) // the grammar above is wrong
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	kctx, err := parse(parser, args)
	if exited >= 0 {
		return exited
	}
	if err == nil {
		var errs []error
		for _, f := range kctx.Flags() {
			errs = append(errs, notNegative("--"+f.Name, f.Target)...)
		}
		err = errors.Join(errs...)
	}
	if err != nil {
		fmt.Fprintf(o.err, "ssr: %v\n", err)
		var p *kong.ParseError
		if errors.As(err, &p) {
			kctx = p.Context
		}
		if kctx != nil && kctx.Selected() != nil {
			fmt.Fprintf(o.err, "see %s --help\n", kctx.Selected().FullPath())
			return exitError
		}
		fmt.Fprintln(o.err, "see ssr --help")
		return exitError
	}
	var status exitStatus
	switch err := kctx.Run(); {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.Is(err, errRefused):
		return exitRefused
	case ctx.Err() != nil:
		fmt.Fprintf(o.err, "ssr: interrupted: %v\n", err)
		return exitInterrupted
	default:
		fmt.Fprintf(o.err, "ssr: %v\n", err)
		return exitError
	}
}

// placeHolder says in help what kind of value a flag without a default takes.
func placeHolder(node kong.Visitable, next kong.Next) error {
	if f, ok := node.(*kong.Flag); ok && f.PlaceHolder == "" && !f.HasDefault {
		kind := f.Target.Kind()
		if kind == reflect.Pointer {
			kind = f.Target.Type().Elem().Kind()
		}
		switch {
		case f.Tag.Type == "existingdir":
			f.PlaceHolder = "DIR"
		case f.Tag.Type == "existingfile":
			f.PlaceHolder = "FILE"
		case f.Tag.Type == "path":
			f.PlaceHolder = "PATH"
		case kind >= reflect.Int && kind <= reflect.Float64:
			f.PlaceHolder = "N"
		}
	}
	return next(nil)
}

// exitNow unwinds the parser after --help.
type exitNow struct{}

func parse(parser *kong.Kong, args []string) (ctx *kong.Context, err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(exitNow); !ok {
				panic(r)
			}
		}
	}()
	return parser.Parse(args)
}

// jsonFlag is shared by commands that can print JSON.
type jsonFlag struct {
	JSON bool `help:"Print JSON."`
}

// check returns the first error of printing a result.
func check(_ int, err error) error { return err }
