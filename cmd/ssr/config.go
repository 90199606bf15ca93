package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rollout"
	"github.com/ssr-go/ssr/rollout/selfplay"
	"github.com/ssr-go/ssr/sandbox"
)

// config is everything that a run is told. It is read from YAML over
// defaultConfig, strictly: an unknown field is an error. The resolved
// configuration is kept in the run's folder and reads back as it was.
type config struct {
	// Repo is the repository to play in, Model the policy to start from, Run the
	// folder to write. Relative paths are relative to the working directory.
	Repo  string `yaml:"repo"`
	Model string `yaml:"model"`
	Run   string `yaml:"run"`
	// Seed fixes every random draw of the run.
	Seed uint64 `yaml:"seed"`

	Policy   policyConfig   `yaml:"policy"`
	Game     gameConfig     `yaml:"game"`
	Episodes episodeConfig  `yaml:"episodes"`
	Sandbox  sandboxConfig  `yaml:"sandbox"`
	Train    train.Settings `yaml:"train"`
	Eval     evalConfig     `yaml:"eval"`
}

// policyConfig is how the policy computes.
type policyConfig struct {
	// Replicas of the policy train together in this process: each generates a share
	// of the episodes and computes a share of every update; the optimizer's state is
	// split among them. Results depend on it in their last bits.
	Replicas int `yaml:"replicas"`
	// Zero is the stage of ZeRO: 1 splits the optimizer's state among the replicas, 2
	// the gradients, too, which are then summed after every micro-batch. Results depend on
	// it in their last bits.
	Zero int `yaml:"zero"`
	// Device computes: cpu, cuda:0 and so on in a program built with CUDA, or generic,
	// which is what a GPU runs, on the CPU and slowly. Several replicas need a GPU each:
	// cuda is the first so many, a list names one for each. Results depend on it in their
	// last bits.
	Device deviceNames `yaml:"device,omitempty"`
	// Kernels of a GPU: this program's CUDA kernels where it has them, the default, or
	// libtorch for its operations alone.
	Kernels string `yaml:"kernels,omitempty"`
	// Determinism gives a token's log-probability the same bits in sampling and in
	// training, whatever else is in the batch, on a GPU at a price. A CPU always does.
	Determinism bool `yaml:"determinism,omitempty"`
	// Workers of each replica on the CPU, one thread each; 0 shares the cores out
	// among the replicas. Results depend on it in their last bits.
	Workers int `yaml:"workers"`
	// DType of the weights: float32, or bfloat16 beside exact ones in training.
	DType string `yaml:"dtype,omitempty"`
	// Recompute trades a third more work in training for a tenth of the memory.
	Recompute bool `yaml:"recompute"`
	// LoRA trains adapters instead of the weights. The first FreezeLayers layers
	// and the embedding are not trained.
	LoRA         *model.LoRA `yaml:"lora,omitempty"`
	FreezeLayers int         `yaml:"freeze_layers,omitempty"`
	// EMA keeps a mean of the trained weights that forgets by this factor each
	// update; checkpoints have it in a folder of that name. 0 keeps none.
	EMA float64 `yaml:"ema,omitempty"`
	// Batch is the most sequences that generate side by side in each replica,
	// CacheBytes the memory of their key-value cache; 0 is the engine's default.
	Batch      int   `yaml:"batch"`
	CacheBytes int64 `yaml:"cache_bytes"`
	// DeviceBytes is the memory of one replica's device. Training that needs more is
	// refused, and unless CacheBytes says otherwise the cache gets what all else
	// leaves. 0 is what is free of a GPU; of the CPU it is unknown: the replicas together
	// are held against the free memory of the machine.
	DeviceBytes int64 `yaml:"device_bytes,omitempty"`
	// Remote is the policy's name on the server, where model is a URL.
	Remote string `yaml:"remote,omitempty"`
	// MaxStale is how many updates the cache of an episode may outlive before it is
	// computed again.
	MaxStale int64 `yaml:"max_stale,omitempty"`
}

// optionsOn are the model's, of the first replica, on a device that has been opened.
func (c policyConfig) optionsOn(on torch.Device) (model.Options, error) {
	d, err := dtype(c.DType)
	if err != nil {
		return model.Options{}, fmt.Errorf("policy.dtype: %w", err)
	}
	return model.Options{
		DType: d, Device: on, Workers: c.workers(), Recompute: c.Recompute, LoRA: c.LoRA, FreezeLayers: c.FreezeLayers, EMA: c.EMA,
		Determinism: c.Determinism, Shard: model.Shard{Of: c.Replicas}, ShardGradient: c.Zero == 2,
	}, nil
}

// workers of each replica.
func (c policyConfig) workers() int {
	if len(c.Device) > 0 && c.Device[0] != torch.CPU.String() {
		return 1 // which queues the device's work
	}
	if c.Workers > 0 {
		return c.Workers
	}
	return max(1, runtime.GOMAXPROCS(0)/max(1, c.Replicas))
}

// gameConfig is the game (see rollout/selfplay.GameOptions).
type gameConfig struct {
	// Mode is self-play, repair-only or injection-only.
	Mode selfplay.Mode `yaml:"mode"`
	// Bugs is the fixed pool of repair-only: a folder of bugs.
	Bugs string `yaml:"bugs,omitempty"`
	// InjectorGroups a step of InjectorsPerPrompt episodes each; SolversPerBug
	// attempts at each valid bug, of at most MaxSolverGroups bugs (0: all);
	// SolverGroups a step in repair-only.
	InjectorGroups     int `yaml:"injector_groups"`
	InjectorsPerPrompt int `yaml:"injectors_per_prompt"`
	SolversPerBug      int `yaml:"solvers_per_bug"`
	MaxSolverGroups    int `yaml:"max_solver_groups"`
	SolverGroups       int `yaml:"solver_groups"`
	// Resample replaces solver groups without spread, in at most so many rounds of
	// a step of repair-only (dynamic sampling).
	Resample int `yaml:"resample,omitempty"`
	// SecondOrderFraction of the solver groups attempt failed repairs.
	SecondOrderFraction float64 `yaml:"second_order_fraction"`
	// Strategies are the weights of the draw: removal, history, direct.
	Strategies map[selfplay.Strategy]float64 `yaml:"strategies"`
	// Signal rewards injectors by solve-rate or by validation; Alpha weighs difficulty.
	Signal selfplay.InjectorSignal `yaml:"signal"`
	Alpha  float64                 `yaml:"alpha"`
	// Seeding tells injectors a drawn function to aim at.
	Seeding bool `yaml:"seeding"`
	// Recipe is the file that says how to find functions in the repository, for Seeding;
	// "" is the built-in one, for Python with unittest.
	Recipe string `yaml:"recipe,omitempty"`
	// Requirements of validation; where RequirementsMax is greater, each injector
	// group draws between the two.
	Requirements    selfplay.Requirements `yaml:"requirements"`
	RequirementsMax selfplay.Requirements `yaml:"requirements_max"`
	// ScriptTimeout bounds one run of a test script; Validators the sandboxes
	// that validate side by side (0: one per core).
	ScriptTimeout time.Duration `yaml:"script_timeout"`
	Validators    int           `yaml:"validators"`
}

// episodeConfig is how episodes are played.
type episodeConfig struct {
	// Prompts is the set of templates, full or brief; files of PromptsDir replace
	// them one by one.
	Prompts    string `yaml:"prompts"`
	PromptsDir string `yaml:"prompts_dir,omitempty"`
	// Protocol is how tools are called: plain, hermes or llama3.
	Protocol string `yaml:"protocol"`
	// InFlight episodes at once. Deadline of one; Retries after infrastructure failures.
	InFlight int           `yaml:"in_flight"`
	Deadline time.Duration `yaml:"deadline"`
	Retries  int           `yaml:"retries"`
	// Limits of turns and tokens.
	Limits rollout.Limits `yaml:"limits"`
	// CommandTimeout bounds one command of an agent.
	CommandTimeout time.Duration `yaml:"command_timeout"`
	// Submissions that a solver has; the last one counts.
	Submissions int `yaml:"submissions"`
	// Sampling.
	Temperature float64 `yaml:"temperature"`
	TopP        float64 `yaml:"top_p"`
	TopK        int     `yaml:"top_k"`
	MinP        float64 `yaml:"min_p,omitempty"`
}

func (c episodeConfig) sampling() gen.Sampling {
	return gen.Sampling{Temperature: c.Temperature, TopP: c.TopP, TopK: c.TopK, MinP: c.MinP}
}

// evalConfig is the measurement during training.
type evalConfig struct {
	// Bugs is a folder of held-out bugs, "" for none; Injections is how many
	// prompts to inject a bug are tried; Attempts at each of both; Every is in
	// steps, 0 for only before and after.
	Bugs       string `yaml:"bugs,omitempty"`
	Injections int    `yaml:"injections"`
	Attempts   int    `yaml:"attempts"`
	Every      int    `yaml:"every"`
}

// defaultConfig is the paper's game at the scale of one machine.
func defaultConfig() config {
	c := config{
		Seed:   1,
		Policy: policyConfig{Replicas: 1, Zero: 1},
		Game: gameConfig{
			Mode: selfplay.SelfPlay, InjectorGroups: 2, InjectorsPerPrompt: 4, SolversPerBug: 8, SolverGroups: 8,
			SecondOrderFraction: 0.25, Strategies: map[selfplay.Strategy]float64{selfplay.Removal: 1, selfplay.History: 1},
			Signal: selfplay.SignalSolveRate, Alpha: selfplay.Alpha,
			Requirements: selfplay.DefaultRequirements, ScriptTimeout: selfplay.DefaultTimeout,
		},
		Episodes: episodeConfig{
			Prompts: "full", Protocol: "plain", InFlight: 16, Deadline: time.Hour, Retries: 2, CommandTimeout: 120 * time.Second, Submissions: 1,
			Limits: rollout.Limits{Turns: 128, Context: 131072, ObservationTokens: 32768}, Temperature: 1, TopP: 1,
		},
		Sandbox: sandboxConfig{Backend: "local"},
		Train:   train.DefaultSettings(),
		Eval:    evalConfig{Attempts: 1},
	}
	c.Train.Loss.Length = 0 // resolved to the context window
	return c
}

// readConfig reads a configuration file (none when path is "") and then
// overrides, each "key.key=value" with a YAML value.
func readConfig(path string, overrides []string) (config, error) {
	var data []byte
	if path != "" {
		var err error
		if data, err = os.ReadFile(path); err != nil {
			return config{}, fmt.Errorf("configuration: %w", err)
		}
	}
	docs := []document{{path, data}}
	for _, o := range overrides {
		d, err := override(o)
		if err != nil {
			return config{}, err
		}
		docs = append(docs, d)
	}
	return parseConfig(docs)
}

// document is a piece of configuration and where it came from.
type document struct {
	name string
	data []byte
}

// setFlag begins the names of documents that are overrides.
const setFlag = "--set "

// override turns "a.b=v" into the document "{a: {b: v}}"; no value is an empty text.
func override(s string) (document, error) {
	key, value, ok := strings.Cut(s, "=")
	keys := strings.Split(key, ".")
	for _, k := range keys {
		ok = ok && k != "" && !strings.ContainsAny(k, "{}[]:,\"'#&*!|>%@` \t\n")
	}
	if !ok {
		return document{}, fmt.Errorf("configuration: --set %q is not key.key=value", s)
	}
	text := cmp.Or(value, `""`)
	for i := len(keys) - 1; i >= 0; i-- {
		text = "{" + keys[i] + ": " + text + "}"
	}
	return document{setFlag + s, []byte(text)}, nil
}

// parseConfig lays documents over the defaults. An objective and an advantage
// bring their own default settings, under what the documents say about them.
func parseConfig(docs []document) (config, error) {
	c := defaultConfig()
	for range 2 {
		base := defaultConfig()
		if c.Train.Objective != base.Train.Objective {
			loss, err := rl.Defaults(c.Train.Objective)
			if err != nil {
				return config{}, fmt.Errorf("configuration: train.objective: %w", err)
			}
			base.Train.Objective, base.Train.Loss = c.Train.Objective, loss
			base.Train.Loss.Length = 0
		}
		advantage, err := rl.LookupAdvantage(c.Train.Advantage)
		if err != nil {
			return config{}, fmt.Errorf("configuration: train.advantage: %w", err)
		}
		settings := advantage.Defaults
		base.Train.AdvantageSettings = &settings
		for _, d := range docs {
			if err := load(d, &base); err != nil {
				return config{}, err
			}
		}
		c = base
		if s := c.Train.AdvantageSettings; s != nil && *s == advantage.Defaults {
			c.Train.AdvantageSettings = nil // said by the name
		}
	}
	if c.Train.Loss.Length == 0 {
		c.Train.Loss.Length = c.Episodes.Limits.Context
	}
	return c, nil
}

// load reads one document strictly over v.
func load(d document, v *config) error {
	if len(bytes.TrimSpace(d.data)) == 0 {
		return nil
	}
	strategies := v.Game.Strategies
	v.Game.Strategies = nil // a document's map replaces the default, it is not laid over it
	err := loadStrict(d, v)
	if v.Game.Strategies == nil {
		v.Game.Strategies = strategies
	}
	return err
}

// loadStrict reads one document over v. Every mistake is reported, with its line.
func loadStrict(d document, v any) error {
	err := yaml.Load(d.data, v, yaml.WithKnownFields())
	if err == nil {
		return nil
	}
	var all *yaml.LoadErrors
	var one *yaml.LoadError
	var mistakes []*yaml.LoadError
	switch {
	case errors.As(err, &all):
		mistakes = all.Errors
	case errors.As(err, &one):
		mistakes = []*yaml.LoadError{one}
	default:
		return fmt.Errorf("configuration: %s: %w", d.name, err)
	}
	lines := []string{"configuration:"}
	for _, m := range mistakes {
		where := d.name
		if !strings.HasPrefix(where, setFlag) {
			where = fmt.Sprintf("%s:%d:%d", d.name, m.Mark.Line, m.Mark.Column)
		}
		text := m.Message
		if field, ok := strings.CutPrefix(text, "field "); ok {
			if name, _, ok := strings.Cut(field, " not found in type "); ok {
				text = "unknown field " + name
			}
		}
		lines = append(lines, fmt.Sprintf("  %s: %s", where, wrongKind(text)))
	}
	return errors.New(strings.Join(lines, "\n"))
}

// misfit is what the YAML library says of a value that does not fit its field's Go type.
var misfit = regexp.MustCompile("^cannot construct !!(\\w+)(?: (`.*`))? into (.+)$")

// wrongKind says it without Go's types.
func wrongKind(text string) string {
	m := misfit.FindStringSubmatch(text)
	if m == nil {
		return text
	}
	kind, value, field := m[1], m[2], m[3]
	want := map[string]string{
		"time.Duration": "a time such as 90s", "bool": "true or false", "float64": "a number", "string": "a text",
		"int": "a whole number", "int64": "a whole number", "uint64": "a whole number",
	}[field]
	switch {
	case want != "":
	case strings.HasPrefix(field, "[]"):
		want = "a list"
	case strings.HasPrefix(field, "map[") || kind != "map":
		want = "settings, each as key: value,"
	default:
		want = "a text" // a name, whose type is a text of this program
	}
	return fmt.Sprintf("%s stands where %s should", cmp.Or(value, "a "+kind), want)
}

// marshal writes a configuration as readConfig reads it.
func (c config) marshal() ([]byte, error) { return yaml.Dump(c) }

// absolute makes the paths independent of the working directory, as they are
// kept in a run's folder.
func (c *config) absolute() error {
	paths := []*string{&c.Repo, &c.Model, &c.Run, &c.Game.Bugs, &c.Game.Recipe, &c.Episodes.PromptsDir, &c.Eval.Bugs, &c.Sandbox.Rootfs, &c.Sandbox.StateDir}
	if strings.ContainsRune(c.Sandbox.Environment, filepath.Separator) {
		paths = append(paths, &c.Sandbox.Environment)
	}
	for _, p := range paths {
		if *p == "" || isURL(*p) {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	return nil
}

// checkPaths refuses a run without the folders that it needs, naming their flags.
func (c config) checkPaths() error {
	return errors.Join(
		rule(c.Repo != "", "repo: give the repository to play in (--repo DIR)"),
		rule(c.Model != "", "model: give the policy to start from (--model DIR); ssr warmstart makes one"),
		rule(c.Run != "", "run: give the folder to write (--run DIR)"),
		rule(c.Repo == "" || isDir(c.Repo), "repo: %s is not a folder", c.Repo),
		rule(c.Model == "" || isURL(c.Model) || isDir(c.Model), "model: %s is not a folder", c.Model))
}

// checkBugs refuses a training whose folders of bugs are not there.
func (c config) checkBugs() error {
	repair := c.Game.Mode == selfplay.RepairOnly && c.Game.Bugs != ""
	return errors.Join(
		rule(!repair || isDir(c.Game.Bugs), "game.bugs: %s is not a folder", c.Game.Bugs),
		rule(c.Eval.Bugs == "" || isDir(c.Eval.Bugs), "eval.bugs: %s is not a folder", c.Eval.Bugs))
}

// check refuses values that nothing can be played or trained with, all of them at once.
func (c config) check() error {
	device := c.Policy.Device.check()
	_, dtype := dtype(c.Policy.DType)
	_, protocol := token.ProtocolNamed(c.Episodes.Protocol)
	_, recipe := readRecipe(c.Game.Recipe)
	_, environment := c.Sandbox.resolve()
	_, prompts := selfplay.LoadPrompts(c.Episodes.Prompts, c.Episodes.PromptsDir)
	e := c.Episodes
	errs := []error{
		in("policy.device", device), in("policy.dtype", dtype), in("episodes.protocol", protocol), in("episodes.prompts", prompts),
		in("game.recipe", recipe), in("sandbox.environment", environment), in("sandbox.env", sandbox.CheckEnv(c.Sandbox.Env)), c.gameOptions().Check(), in("train", c.Train.Check()),
		rule(c.Game.Mode != selfplay.RepairOnly || c.Game.Bugs != "", "game.bugs: repair-only needs a folder of bugs"),
		rule(e.InFlight > 0, "episodes.in_flight is %d; it must be positive", e.InFlight),
		rule(e.TopP <= 1 && e.MinP <= 1, "episodes: top_p %g and min_p %g must lie in [0, 1]", e.TopP, e.MinP),
		rule(c.Policy.Replicas > 0, "policy.replicas is %d; it must be positive", c.Policy.Replicas),
		rule(c.Policy.Zero == 1 || c.Policy.Zero == 2,
			"policy.zero is %d; want 1, which shards the optimizer's state among replicas, or 2, which shards gradients, too", c.Policy.Zero),
		rule(c.Policy.Kernels == "" || c.Policy.Kernels == libtorchKernels, "policy.kernels is %q; want %s or nothing", c.Policy.Kernels, libtorchKernels),
		rule(slices.Contains([]string{"", "local", "docker"}, c.Sandbox.Backend), "sandbox.backend: no backend %q; there are local and docker", c.Sandbox.Backend),
		rule(c.Eval.Attempts > 0, "eval.attempts is %d; it must be positive", c.Eval.Attempts),
	}
	for _, part := range []struct {
		name   string
		fields any
	}{{"policy", c.Policy}, {"game", c.Game}, {"episodes", c.Episodes}, {"sandbox", c.Sandbox}, {"eval", c.Eval}} {
		errs = append(errs, notNegative(part.name, reflect.ValueOf(part.fields))...)
	}
	return errors.Join(errs...)
}

// notNegative returns an error for each number below v that is negative or none.
func notNegative(name string, v reflect.Value) (errs []error) {
	switch {
	case v.Kind() == reflect.Pointer && !v.IsNil():
		return notNegative(name, v.Elem())
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
			errs = append(errs, notNegative(name+"."+key, v.Field(i))...)
		}
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			errs = append(errs, notNegative(name, v.Index(i))...)
		}
	case v.CanInt() && v.Int() < 0, v.CanFloat() && !(v.Float() >= 0):
		errs = append(errs, fmt.Errorf("%s is %v; it must not be negative", name, v))
	}
	return errs
}

func rule(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// in says which field an error is about.
func in(field string, err error) error {
	if err != nil {
		err = fmt.Errorf("%s: %w", field, err)
	}
	return err
}

func refuse(errs ...error) error {
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("configuration:\n%w", err)
	}
	return nil
}
