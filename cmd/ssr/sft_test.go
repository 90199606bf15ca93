package main

import (
	"testing"

	"github.com/ssr-go/ssr/model/token"
)

// A turn to be skipped is read like any other, and not trained on.
func TestSkippedTurnsAreNotTrained(t *testing.T) {
	tok, err := token.Train([]string{"wrong right"}, token.TrainOptions{VocabSize: 259, Specials: token.ChatMLSpecials})
	if err != nil {
		t.Fatal(err)
	}
	chat := episode{Messages: []token.Message{
		{Role: token.User, Content: "a"}, {Role: token.Assistant, Content: "wrong"},
		{Role: token.User, Content: "b"}, {Role: token.Assistant, Content: "right"},
	}}
	all, err := chat.example(tok, false)
	if err != nil {
		t.Fatal(err)
	}
	chat.Skip = []int{0}
	some, err := chat.example(tok, false)
	if err != nil {
		t.Fatal(err)
	}
	trained := func(ids []int32, marks []bool) (text string) {
		for i, id := range ids {
			if marks[i] {
				text += tok.Decode([]int32{id})
			}
		}
		return text
	}
	if got, want := trained(all.Tokens, all.Trained), "wrong<|im_end|>right<|im_end|>"; got != want {
		t.Errorf("trained on %q, want %q", got, want)
	}
	if got, want := trained(some.Tokens, some.Trained), "right<|im_end|>"; got != want {
		t.Errorf("trained on %q, want %q", got, want)
	}
	if len(all.Tokens) != len(some.Tokens) {
		t.Errorf("%d tokens, and %d with a turn to skip", len(all.Tokens), len(some.Tokens))
	}
}
