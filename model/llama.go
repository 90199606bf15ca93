package model

// llama is LlamaForCausalLM, which Llama 2 and 3 checkpoints use: as qwen2 but
// with no bias anywhere, a head dimension of its own in some models, and, since
// Llama 3.1, scaled rotary frequencies.
var llama = family{
	architecture: "LlamaForCausalLM",
	defaults:     `{"rope_theta": 10000}`,
	fixed:        map[string]any{"attention_bias": false, "mlp_bias": false, "pretraining_tp": 1.0},
}
