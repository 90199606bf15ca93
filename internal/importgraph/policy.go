// Package importgraph holds the rule of who may know whom in this module, and
// the walk that its test checks the source with.
package importgraph

// Module is the path that internal imports begin with.
const Module = "github.com/ssr-go/ssr"

// helpers is the room that every package may import from.
const helpers = "internal/..."

// Room is the import rule of one package, or of a package and those below it.
type Room struct {
	// Path is relative to the module; a final "/..." takes in all below.
	// A package's own room goes before one that takes it in.
	Path string
	// Pure packages build with CGO_ENABLED=0: no cgo, no libtorch, no device,
	// themselves and in everything of this module that they import.
	Pure bool
	// May lists what the package may import of this module, as paths or "/..."
	// patterns. A package below a room may always import its own room.
	// The helpers of the room internal/... are open to all.
	May []string
}

// Rooms is the policy. A package that no room matches is a violation: whoever
// adds one decides here what it may know.
var Rooms = []Room{
	// Tensors.
	{Path: "kernels/device", Pure: true},
	{Path: "kernels/native"},
	{Path: "kernels/torch", May: []string{"kernels/device", "kernels/native"}},
	{Path: "kernels/collective", Pure: true},
	{Path: "kernels/collective/c10d", May: []string{"kernels/collective"}},
	{Path: "kernels/cuda", Pure: true},
	{Path: "kernels/cuda/cudatest", Pure: true, May: []string{"kernels/cuda"}},
	{Path: "kernels/cuda/emulate", May: []string{"kernels/cuda"}},
	{Path: "kernels/cuda/gpu", May: []string{"kernels/cuda", "kernels/torch"}},

	// The policy: text to ids to tensors, and generation.
	{Path: "model/gen", Pure: true},
	{Path: "model/token", Pure: true, May: []string{"model/token/jinja"}},
	{Path: "model/token/jinja", Pure: true},
	{Path: "model/safetensors", Pure: true},
	{Path: "model/serve", Pure: true, May: []string{"model/gen", "model/token"}},
	{Path: "model/sched", Pure: true, May: []string{"model/gen"}},
	{Path: "model", May: []string{"kernels/cuda", "kernels/device", "kernels/native", "kernels/torch", "model/safetensors"}},
	{Path: "model/engine", May: []string{
		"kernels/device", "kernels/native", "kernels/torch", "model", "model/gen", "model/sched",
	}},

	{Path: "model/budget", May: []string{"kernels/native", "model", "model/engine"}},

	// Where untrusted code runs.
	{Path: "sandbox", Pure: true},
	{Path: "sandbox/...", Pure: true, May: []string{"sandbox/..."}},

	// Episodes and the game.
	{Path: "rollout", Pure: true, May: []string{"model/gen", "model/token", "sandbox"}},
	{Path: "rollout/remote", Pure: true, May: []string{"model/gen", "rollout"}},
	{Path: "rollout/selfplay", Pure: true, May: []string{
		"model/gen", "model/token", "rollout", "sandbox", "sandbox/harvest",
	}},

	// Learning: the algorithm knows records and no tensors; the loop knows all
	// through interfaces of its own.
	{Path: "rl", Pure: true, May: []string{"model/gen", "rollout"}},
	{Path: "rl/train", Pure: true, May: []string{
		"model/gen", "model/token", "rl", "rollout", "rollout/selfplay", "sandbox",
	}},
	{Path: "rl/train/tabular", Pure: true, May: []string{"model/gen", "rl", "rl/train", "rollout"}},
	// Several devices as one learner; what moves their memory is an interface.
	{Path: "rl/train/replicas", Pure: true, May: []string{"rl", "rl/train"}},
	// What joins the loop and the policy.
	{Path: "rl/train/learner", May: []string{
		"kernels/collective", "kernels/collective/c10d", "kernels/cuda/gpu", "kernels/torch", "model", "model/token", "rl", "rl/train", "rl/train/replicas",
	}},

	// Wiring.
	{Path: "cmd/ssr", May: []string{"..."}},
	{Path: "cmd/ssr/...", May: []string{"..."}},

	// Helpers know nobody, so that everybody may know them.
	{Path: helpers, Pure: true},
	// What cmd/ssr shows of a run on a terminal.
	{Path: "internal/ui", Pure: true, May: []string{"rl/train", "rollout"}},
}

// Never lists what must not be reached, through however many packages. It
// repeats in the large what Rooms says in the small, so that a careless line in
// that table cannot undo it.
var Never = []struct{ From, To string }{
	{"sandbox/...", "kernels/..."},
	{"rollout/...", "kernels/..."},
	{"model/...", "rollout/..."},
	{"model/...", "rl/..."},
	{"rl/...", "model/engine"},
	{"rl/...", "cmd/..."},
	{"model/...", "cmd/..."},
	{"rollout/...", "cmd/..."},
	{"sandbox/...", "cmd/..."},
}

// Native are the imports from outside that make a package impure: cgo itself,
// and modules that need libtorch or a device.
var Native = []string{"C", "github.com/sugarme/gotch", "gorgonia.org/cu"}
