package train

import "math/rand/v2"

// Lessons that help a policy trained from scratch beside the episodes that it
// is to imitate: without them it learns its own turns by heart and neither reads
// what a tool shows it nor repeats a line that it has not seen before.

// Pieces cuts a document into examples of at most window tokens, all trained.
func Pieces(document []int32, window int) (all []Example) {
	for len(document) > 1 {
		n := min(window, len(document))
		all = append(all, text(document[:n]))
		document = document[n:]
	}
	return all
}

func text(tokens []int32) Example {
	e := Example{Tokens: tokens, Trained: make([]bool, len(tokens))}
	for i := range e.Trained {
		e.Trained[i] = true
	}
	return e
}

// CopyDrills returns n examples that teach to copy: 20 to 79 random tokens of a
// vocabulary of the given size, four times over with a few random tokens between.
// The repetitions are trained. What cannot be guessed can only be looked up, which
// is the shortest way to a transformer's induction heads (Olsson et al. 2022,
// arXiv 2209.11895).
func CopyDrills(n, vocabulary int, seed uint64) []Example {
	draw := rand.New(rand.NewPCG(seed, 0x636f7079))
	all := make([]Example, n)
	for i := range all {
		e := &all[i]
		add := func(id int32, trained bool) {
			e.Tokens, e.Trained = append(e.Tokens, id), append(e.Trained, trained)
		}
		random := func() int32 { return int32(draw.IntN(vocabulary)) }
		phrase := make([]int32, 20+draw.IntN(60))
		for k := range phrase {
			phrase[k] = random()
		}
		for repetition := range 4 {
			for _, id := range phrase {
				add(id, repetition > 0)
			}
			for range draw.IntN(8) {
				add(random(), false)
			}
		}
	}
	return all
}
