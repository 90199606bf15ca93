package model

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// published is the config.json of a Qwen2.5 checkpoint as published, before
// transformers 5 changed how rotary embeddings are written.
const published = `{
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
  "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
  "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
  "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
  "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_sliding_window": false,
  "vocab_size": 151936
}`

func TestConfigReadsBothSpellings(t *testing.T) {
	c, err := parseConfig([]byte(published))
	if err != nil {
		t.Fatal(err)
	}
	c.extra = nil
	want := Config{
		ModelType: "qwen2", VocabSize: 151936, Hidden: 896, Intermediate: 4864, Layers: 24, Heads: 14, KVHeads: 2, HeadDim: 64,
		MaxPositions: 32768, NormEps: 1e-6, RopeTheta: 1e6, TieEmbeddings: true, InitStd: 0.02, BOS: 151643, EOS: []int32{151645},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("published: got %+v, want %+v", c, want)
	}
	// testdata is transformers 5's own writing.
	c, err = ReadConfig("testdata/llama-untied")
	if err != nil {
		t.Fatal(err)
	}
	scaling := RopeScaling{Factor: 8, LowFreqFactor: 1, HighFreqFactor: 4, OriginalMaxPosns: 32}
	if c.RopeTheta != 5e5 || c.RopeScaling == nil || *c.RopeScaling != scaling || c.HeadDim != 10 || !reflect.DeepEqual(c.EOS, []int32{2, 3}) {
		t.Errorf("transformers 5: got %+v (%+v)", c, c.RopeScaling)
	}
}

func TestConfigRoundTrip(t *testing.T) {
	for _, dir := range []string{"testdata/qwen2-tied", "testdata/llama-untied"} {
		c, err := ReadConfig(dir)
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.encode("float32")
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseConfig(out)
		if err != nil {
			t.Fatal(err)
		}
		if string(again.extra["attention_dropout"]) != string(c.extra["attention_dropout"]) {
			t.Errorf("%s: a field that is not interpreted was lost", dir)
		}
		c.extra, again.extra = nil, nil
		if !reflect.DeepEqual(c, again) {
			t.Errorf("%s: %+v became %+v", dir, c, again)
		}
	}
}

func TestConfigRefusals(t *testing.T) {
	for _, tc := range []struct{ from, to, want string }{
		{`"qwen2"`, `"mamba"`, `model_type "mamba" is not supported; known: llama, qwen2`},
		{`"hidden_size": 896`, `"hidden_size": 0`, "hidden_size is 0 or missing"},
		{`"rms_norm_eps": 1e-06,`, ``, "rms_norm_eps is 0 or missing"},
		{`"num_key_value_heads": 2`, `"num_key_value_heads": 3`, "num_attention_heads 14 is not a multiple of num_key_value_heads 3"},
		{`"use_sliding_window": false`, `"use_sliding_window": true`, "use_sliding_window true is not supported"},
		{`"max_position_embeddings": 32768`, `"max_position_embeddings": 1099511627776`, "max_position_embeddings is 1099511627776"},
		{`"silu"`, `"gelu"`, `hidden_act "gelu" is not supported`},
		{`"rope_theta": 1000000.0`, `"rope_scaling": {"type": "yarn", "factor": 4.0}`, `rope scaling "yarn" is not supported for qwen2`},
		{`"vocab_size": 151936`, `"vocab_size": "many"`, "vocab_size"},
		{`151645`, `"end"`, "eos_token_id"},
		{`{`, `[`, "invalid character"},
	} {
		_, err := parseConfig([]byte(strings.Replace(published, tc.from, tc.to, 1)))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s → %s: got %v, want %q", tc.from, tc.to, err, tc.want)
		}
	}
	if _, err := ReadConfig(t.TempDir()); err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("missing file: %v", err)
	}
}

// FuzzConfig: no config.json makes parsing panic, and what it accepts survives
// being written and read again.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(published))
	for _, name := range goldenCases {
		data, err := os.ReadFile(filepath.Join("testdata", name, "config.json"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseConfig(data)
		if err != nil {
			return
		}
		out, err := c.encode("float32")
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseConfig(out)
		if err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		c.extra, again.extra = nil, nil
		if len(c.EOS) == 0 {
			c.EOS = nil
		}
		if !reflect.DeepEqual(c, again) {
			t.Fatalf("%+v became %+v", c, again)
		}
	})
}
