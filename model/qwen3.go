package model

// qwen3 is Qwen3ForCausalLM, the dense Qwen3 models: as qwen2, but without
// biases and with an RMSNorm over each head of the queries and of the keys
// before they are rotated, and a head dimension of its own.
var qwen3 = family{
	architecture: "Qwen3ForCausalLM",
	qkNorm:       true,
	defaults: `{"num_key_value_heads": 32, "head_dim": 128, "rope_theta": 10000,
		"sliding_window": 4096, "max_window_layers": 28}`,
	slides: qwenSlides,
	window: qwenWindow,
	fixed:  map[string]any{"attention_bias": false},
}
