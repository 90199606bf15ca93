package train

import (
	"slices"
	"testing"
)

// A drill's trained tokens are exactly those that an earlier place determines.
func TestCopyDrillsTrainOnlyWhatCanBeCopied(t *testing.T) {
	drills := CopyDrills(50, 1<<20, 3)
	for i, d := range drills {
		first := slices.Index(d.Trained, true)
		phrase := 0
		for phrase < first && d.Tokens[phrase] != d.Tokens[first] {
			phrase++
		}
		if phrase != 0 {
			t.Fatalf("drill %d repeats from token %d, want from its start", i, phrase)
		}
		seen := map[int32]bool{}
		trained := 0
		for k, id := range d.Tokens {
			if d.Trained[k] != seen[id] {
				t.Fatalf("drill %d, token %d: trained %v, seen before %v", i, k, d.Trained[k], seen[id])
			}
			if d.Trained[k] {
				trained++
			}
			seen[id] = true
		}
		if trained < 60 || trained > 3*79 || trained%3 != 0 {
			t.Errorf("drill %d trains %d tokens, want three times 20 to 79", i, trained)
		}
	}
	if again := CopyDrills(50, 1<<20, 3); !slices.Equal(again[49].Tokens, drills[49].Tokens) {
		t.Error("the same seed gives other drills")
	}
}

func TestPiecesHoldTheDocument(t *testing.T) {
	document := make([]int32, 1000)
	for i := range document {
		document[i] = int32(i)
	}
	var back []int32
	for _, p := range Pieces(document, 300) {
		if len(p.Tokens) > 300 || slices.Contains(p.Trained, false) {
			t.Errorf("a piece of %d tokens, trained %v", len(p.Tokens), p.Trained)
		}
		back = append(back, p.Tokens...)
	}
	if !slices.Equal(back, document) {
		t.Errorf("the pieces have %d tokens, want the document's 1000", len(back))
	}
}
