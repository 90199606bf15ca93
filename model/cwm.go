package model

// cwm is CwmForCausalLM, the 32B code world model (arXiv 2510.02387): as llama,
// but only every fourth layer, the first among them, sees all tokens; the others
// see a window. Its rotary frequencies are scaled even where config.json does
// not say so.
var cwm = family{
	architecture: "CwmForCausalLM",
	defaults: `{"num_key_value_heads": 8, "head_dim": 128, "rope_theta": 1000000, "sliding_window": 8192,
		"bos_token_id": 128000}`,
	rope: `{"rope_type": "llama3", "rope_theta": 1000000, "factor": 16, "low_freq_factor": 1, "high_freq_factor": 4,
		"original_max_position_embeddings": 8192}`,
	slides: func(_ file, layer int) bool { return layer%4 != 0 },
	window: func(c Config) map[string]any {
		fields := map[string]any{"layer_types": c.layerTypes()}
		if c.Window > 0 {
			fields["sliding_window"] = c.Window
		}
		return fields
	},
	needsBOS: true,
	fixed:    map[string]any{"mlp_bias": false, "pretraining_tp": 1.0},
}
