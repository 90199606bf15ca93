package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ssr-go/ssr/internal/worldtest"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/sandbox/local"
)

// The scripts in testdata/script run the whole binary.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"ssr":     main,
		"mkmodel": command(func(args []string) error { return makeModel(args[0]) }),
		"mkworld": command(func(args []string) error { return worldtest.Make(context.Background(), args[0], args[1]) }),
	})
}

// command runs f on the arguments and fails with its error.
func command(f func(args []string) error) func() {
	return func() {
		if err := f(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// makeModel writes a tiny model with random weights.
func makeModel(dir string) error {
	t, err := token.Train([]string{"<tool: bash>\nls\n</tool>\n the the the return return"}, token.TrainOptions{VocabSize: 280, Specials: token.ChatMLSpecials})
	if err != nil {
		return err
	}
	p, err := model.New(model.Config{
		ModelType: "qwen2", VocabSize: t.VocabSize(), Hidden: 16, Intermediate: 32, Layers: 2, Heads: 2, KVHeads: 1, HeadDim: 8,
		MaxPositions: 1024, NormEps: 1e-6, RopeTheta: 10000, TieEmbeddings: true, BOS: -1, EOS: []int32{2},
	}, 1, model.Options{Workers: 1})
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.Save(dir, torch.Float32); err != nil {
		return err
	}
	return t.Save(dir)
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("ARTIFACTS", worldtest.Dir("quill")+"/artifacts")
			recipes, err := filepath.Abs("../../examples/recipes")
			if err != nil {
				return err
			}
			e.Setenv("RECIPES", recipes)
			e.Setenv("TMPDIR", e.WorkDir+"/.tmp")
			return os.MkdirAll(e.WorkDir+"/.tmp", 0o1777)
		},
		Condition: func(cond string) (bool, error) {
			if cond != "sandbox" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			b, err := local.New(local.Options{})
			if err != nil {
				return false, nil
			}
			defer b.Close()
			_, err = b.Probe(context.Background())
			return err == nil, nil
		},
	})
}
