package token

import (
	"bytes"
	"cmp"
	"container/heap"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// ChatMLSpecials are the special tokens that a chat in ChatML needs, with an
// end of text.
var ChatMLSpecials = []string{"<|endoftext|>", "<|im_start|>", "<|im_end|>"}

// TrainOptions say what tokenizer to train.
type TrainOptions struct {
	// VocabSize counts everything: specials, the 256 bytes and the merges. A
	// corpus with too few repeated pairs gives a smaller vocabulary.
	VocabSize int
	// Specials get the first ids; none by default.
	Specials []string
	// Pattern defaults to Qwen2.
	Pattern Pattern
}

// Train learns a byte-level BPE from a corpus: while the vocabulary is not
// full, the most frequent adjacent pair (on a tie the one with the lower ids)
// becomes a token, as long as it occurs at least twice. The result depends on
// nothing but the arguments.
func Train(corpus []string, o TrainOptions) (*Tokenizer, error) {
	if o.Pattern == "" {
		o.Pattern = Qwen2
	}
	switch {
	case regexes[o.Pattern] == "":
		return nil, fmt.Errorf("token: unknown pattern %q", o.Pattern)
	case o.VocabSize < 256+len(o.Specials):
		return nil, fmt.Errorf("token: vocabulary size %d is less than the %d specials and 256 bytes", o.VocabSize, len(o.Specials))
	case o.VocabSize > maxTokenID:
		return nil, fmt.Errorf("token: vocabulary size %d is more than %d", o.VocabSize, maxTokenID)
	}
	t := &Tokenizer{pattern: o.Pattern, vocab: map[string]int32{}, merges: map[pair]merge{}}
	seen := map[string]bool{}
	for i, s := range o.Specials {
		if len(s) < 2 || seen[s] {
			return nil, fmt.Errorf("token: special %q is shorter than two bytes or repeated", s)
		}
		seen[s] = true
		t.added = append(t.added, addedToken{ID: int32(i), Content: s, Special: true})
		t.text = append(t.text, s)
	}
	alphabet := make([]byte, 256)
	for b := range alphabet {
		alphabet[b] = byte(b)
	}
	slices.SortFunc(alphabet, func(a, b byte) int { return cmp.Compare(byteRune[a], byteRune[b]) })
	for _, b := range alphabet {
		t.vocab[string([]byte{b})] = int32(len(t.text))
		t.text = append(t.text, string([]byte{b}))
	}
	if err := t.index(); err != nil {
		return nil, err
	}
	newTrainer(t, corpus).run(o.VocabSize)
	var err error
	if t.files, err = t.render(); err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	return t, nil
}

// trainer holds the distinct pre-tokens of the corpus as words of ids, how
// often each pair occurs, and where.
type trainer struct {
	t     *Tokenizer
	words [][]int32
	times []int
	count map[pair]int
	where map[pair][]int32 // words that held the pair when it was added; may repeat or be out of date
	queue pairQueue
}

// ranked is a queued pair with the count it had then.
type ranked struct {
	pair  pair
	count int
}

type pairQueue []ranked

func (q pairQueue) Len() int { return len(q) }
func (q pairQueue) Less(i, j int) bool {
	return q[i].count > q[j].count || q[i].count == q[j].count && q[i].pair < q[j].pair
}
func (q pairQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *pairQueue) Push(x any)   { *q = append(*q, x.(ranked)) }
func (q *pairQueue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

func newTrainer(t *Tokenizer, corpus []string) *trainer {
	tr := &trainer{t: t, count: map[pair]int{}, where: map[pair][]int32{}}
	index := map[string]int32{}
	for _, text := range corpus {
		for text != "" {
			n := t.pattern.next(text)
			piece := text[:n]
			text = text[n:]
			i, ok := index[piece]
			if !ok {
				i = int32(len(tr.words))
				index[piece] = i
				word := make([]int32, len(piece))
				for j := range len(piece) {
					word[j] = t.byteID[piece[j]]
				}
				tr.words = append(tr.words, word)
				tr.times = append(tr.times, 0)
			}
			tr.times[i]++
		}
	}
	for i, word := range tr.words {
		for j := 1; j < len(word); j++ {
			tr.add(pairOf(word[j-1], word[j]), int32(i))
		}
	}
	for p, n := range tr.count {
		tr.queue = append(tr.queue, ranked{p, n})
	}
	heap.Init(&tr.queue)
	return tr
}

// add counts one more occurrence of p in word i.
func (tr *trainer) add(p pair, i int32) {
	tr.count[p] += tr.times[i]
	if w := tr.where[p]; len(w) == 0 || w[len(w)-1] != i {
		tr.where[p] = append(w, i)
	}
}

func (tr *trainer) run(vocabSize int) {
	t := tr.t
	for len(t.text) < vocabSize && len(tr.queue) > 0 {
		top := heap.Pop(&tr.queue).(ranked)
		if now := tr.count[top.pair]; now != top.count {
			heap.Push(&tr.queue, ranked{top.pair, now})
			continue
		}
		if top.count < 2 {
			return
		}
		a, b := top.pair.split()
		text := t.text[a] + t.text[b]
		id, known := t.vocab[text] // two ways of building one token share its id
		if !known {
			id = int32(len(t.text))
			t.vocab[text] = id
			t.text = append(t.text, text)
		}
		if _, again := t.merges[top.pair]; !again {
			t.merges[top.pair] = merge{int32(len(t.order)), id}
			t.order = append(t.order, top.pair)
		}
		tr.apply(a, b, id)
	}
}

// apply replaces every a b by id in all words and brings the counts up to date.
func (tr *trainer) apply(a, b, id int32) {
	fresh := map[pair]bool{}
	words := tr.where[pairOf(a, b)]
	delete(tr.where, pairOf(a, b))
	slices.Sort(words)
	for _, i := range slices.Compact(words) {
		word, n := tr.words[i], tr.times[i]
		out := word[:0]
		for j := 0; j < len(word); j++ {
			if word[j] != a || j+1 == len(word) || word[j+1] != b {
				out = append(out, word[j])
				continue
			}
			if k := len(out); k > 0 {
				tr.count[pairOf(out[k-1], a)] -= n
				tr.add(pairOf(out[k-1], id), i)
				fresh[pairOf(out[k-1], id)] = true
			}
			if j+2 < len(word) {
				tr.count[pairOf(b, word[j+2])] -= n
				tr.add(pairOf(id, word[j+2]), i)
				fresh[pairOf(id, word[j+2])] = true
			}
			out = append(out, id)
			j++
		}
		tr.words[i] = out
	}
	delete(tr.count, pairOf(a, b))
	for p := range fresh {
		if n := tr.count[p]; n > 0 {
			heap.Push(&tr.queue, ranked{p, n})
		}
	}
}

// render writes the files of a trained tokenizer.
func (t *Tokenizer) render() (map[string][]byte, error) {
	var vocab bytes.Buffer
	vocab.WriteByte('{')
	special := map[int32]bool{}
	for _, a := range t.added {
		special[a.ID] = true
	}
	for id, text := range t.text {
		if !special[int32(id)] {
			text = toByteLevel(text)
		}
		if id > 0 {
			vocab.WriteByte(',')
		}
		key, err := marshal(text)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&vocab, "%s:%d", key, id)
	}
	vocab.WriteByte('}')
	lines := make([]string, len(t.order))
	for i, p := range t.order {
		a, b := p.split()
		lines[i] = toByteLevel(t.text[a]) + " " + toByteLevel(t.text[b])
	}
	merges, err := marshal(lines)
	if err != nil {
		return nil, err
	}
	pre, err := renderPreTokenizer(t.pattern)
	if err != nil {
		return nil, err
	}
	added := t.added
	if added == nil {
		added = []addedToken{}
	}
	data, err := marshal(tokenizerJSON{
		Version: "1.0", AddedTokens: added, PreTokenizer: pre,
		Decoder: json.RawMessage(`{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}`),
		Model:   modelJSON{Type: "BPE", Vocab: vocab.Bytes(), Merges: merges},
	})
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{"tokenizer.json": data}
	config := map[string]any{"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": false, "clean_up_tokenization_spaces": false}
	if _, ok := t.ID(imEnd); ok {
		config["eos_token"] = imEnd
		config["chat_template"] = chatMLTemplate
	}
	if _, ok := t.ID(endOfText); ok {
		config["pad_token"] = endOfText
	}
	if files["tokenizer_config.json"], err = marshal(config); err != nil {
		return nil, err
	}
	return files, nil
}

func renderPreTokenizer(p Pattern) (json.RawMessage, error) {
	if p == GPT2 {
		return json.RawMessage(`{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}`), nil
	}
	quoted, err := marshal(regexes[p])
	return json.RawMessage(`{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":` + strings.TrimSpace(string(quoted)) +
		`},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]}`), err
}

// marshal is json.Marshal without HTML escapes.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}
