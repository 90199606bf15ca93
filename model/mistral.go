package model

// mistral is MistralForCausalLM, which the 7B models and their descendants use:
// as llama, but every layer sees a window where the checkpoint has one (the
// first 7B does; later ones say null).
var mistral = family{
	architecture: "MistralForCausalLM",
	defaults:     `{"num_key_value_heads": 8, "rope_theta": 10000, "sliding_window": 4096}`,
	slides:       func(f file, _ int) bool { return f.Window != nil },
	window: func(c Config) map[string]any {
		if c.Window == 0 {
			return map[string]any{"sliding_window": nil}
		}
		return map[string]any{"sliding_window": c.Window}
	},
	uniform: true,
}
