package serve

import (
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/ssr-go/ssr/model/gen"
)

const (
	maxChoices   = 128
	maxStops     = 16
	maxStopBytes = 1024
	maxTop       = 20 // alternatives to a token
)

// settings are the fields that both endpoints have. Pointers tell 0 from absent.
type settings struct {
	Model         string   `json:"model"`
	MaxTokens     *int     `json:"max_tokens"`
	N             *int     `json:"n"`
	Seed          *int64   `json:"seed"`
	Stop          oneOrAll `json:"stop"`
	Temperature   *float64 `json:"temperature"`
	TopP          *float64 `json:"top_p"`
	Stream        bool     `json:"stream"`
	StreamOptions *struct {
		IncludeUsage       bool `json:"include_usage"`
		IncludeObfuscation bool `json:"include_obfuscation"` // there is none
	} `json:"stream_options"`

	// Beyond OpenAI's API, as other servers have them.
	TopK *int     `json:"top_k"`
	MinP *float64 `json:"min_p"`

	// Only what changes nothing is accepted of these.
	FrequencyPenalty float64            `json:"frequency_penalty"`
	PresencePenalty  float64            `json:"presence_penalty"`
	LogitBias        map[string]float64 `json:"logit_bias"`

	// These say nothing about the answer.
	User     json.RawMessage `json:"user"`
	Metadata json.RawMessage `json:"metadata"`
}

// chatRequest is the body of a chat completion.
type chatRequest struct {
	settings
	Messages            []Message       `json:"messages"`
	MaxCompletionTokens *int            `json:"max_completion_tokens"`
	Logprobs            bool            `json:"logprobs"`
	TopLogprobs         int             `json:"top_logprobs"`
	Tools               []Tool          `json:"tools"`
	ToolChoice          json.RawMessage `json:"tool_choice"`
	ResponseFormat      *struct {
		Type string `json:"type"`
	} `json:"response_format"`

	// These say nothing about the answer.
	ParallelToolCalls json.RawMessage `json:"parallel_tool_calls"`
	Store             json.RawMessage `json:"store"`
	ServiceTier       json.RawMessage `json:"service_tier"`
	SafetyIdentifier  json.RawMessage `json:"safety_identifier"`
	PromptCacheKey    json.RawMessage `json:"prompt_cache_key"`
}

// textRequest is the body of a completion.
type textRequest struct {
	settings
	Prompt   prompts `json:"prompt"`
	Logprobs *int    `json:"logprobs"`
	Echo     bool    `json:"echo"`
	BestOf   *int    `json:"best_of"`
	Suffix   string  `json:"suffix"`
}

// oneOrAll is a list of strings, or one.
type oneOrAll []string

func (l *oneOrAll) UnmarshalJSON(data []byte) error {
	var one string
	if string(data) == "null" {
		return nil
	}
	if json.Unmarshal(data, &one) == nil {
		*l = oneOrAll{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(l))
}

// prompts are texts or token histories; one may stand without a list.
type prompts struct {
	texts []string
	ids   [][]int32
}

func (p *prompts) UnmarshalJSON(data []byte) error {
	var one []int32
	switch {
	case json.Unmarshal(data, (*oneOrAll)(&p.texts)) == nil:
	case json.Unmarshal(data, &one) == nil:
		p.texts, p.ids = nil, [][]int32{one}
	case json.Unmarshal(data, &p.ids) == nil:
		p.texts = nil
	default:
		return errors.New("the prompt is none of a text, a list of texts, a list of tokens and a list of lists of tokens")
	}
	return nil
}

// job is what a request asks the generator for.
type job struct {
	prompts   [][]int32
	n         int // choices of each prompt
	maxTokens int // of each choice, 0 for all that there is room for
	// echo begins the answer with the prompt; scoreOnly: there is no more to it.
	echo, scoreOnly bool

	request gen.Request
	stops   []string
	ends    []string

	stream   bool
	usage    bool // in a stream
	logprobs bool
	tools    []Tool
}

// decode reads a body strictly.
func (s *Server) decode(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, s.opts.BodyBytes))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, err = d.Token(); err == io.EOF {
			// The connection is read on to see when the client goes.
			_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
			return nil
		}
		err = errors.New("something follows the JSON object")
	}
	if size := new(http.MaxBytesError); errors.As(err, &size) {
		return err
	}
	if kind := new(json.UnmarshalTypeError); errors.As(err, &kind) && kind.Field != "" {
		field := strings.TrimPrefix(kind.Field, "settings.")
		return invalid(field, "%s: it is a %s; want %s", field, kind.Value, jsonKind(kind.Type))
	}
	return invalid("", "the request's body: %s", strings.TrimPrefix(err.Error(), "json: "))
}

// jsonKind is what JSON calls the values of a type.
func jsonKind(t reflect.Type) string {
	switch k := t.Kind(); {
	case k == reflect.Bool:
		return "true or false"
	case k == reflect.String:
		return "a string"
	case k == reflect.Slice:
		return "an array"
	case k >= reflect.Int && k <= reflect.Uint64:
		return "a whole number"
	case k == reflect.Float32 || k == reflect.Float64:
		return "a number"
	}
	return "an object"
}

// job checks the common fields.
func (s *Server) job(r *settings) (*job, error) {
	if err := s.named(r.Model); err != nil {
		return nil, err
	}
	j := &job{
		n: value(r.N, 1), stops: r.Stop, stream: r.Stream,
		request: gen.Request{Seed: rand.Uint64(), Sampling: gen.Sampling{
			Temperature: value(r.Temperature, 1), TopP: value(r.TopP, 1), TopK: max(value(r.TopK, 0), 0), MinP: value(r.MinP, 0),
		}},
	}
	if r.Seed != nil {
		j.request.Seed = uint64(*r.Seed)
	}
	if r.StreamOptions != nil {
		if !r.Stream {
			return nil, invalid("stream_options", "only a stream has them; set stream")
		}
		j.usage = r.StreamOptions.IncludeUsage
	}
	if err := j.setMaxTokens("max_tokens", r.MaxTokens); err != nil {
		return nil, err
	}
	switch {
	case j.n < 1 || j.n > maxChoices:
		return nil, invalid("n", "%d is not between 1 and %d", j.n, maxChoices)
	case j.request.Sampling.Temperature < 0:
		return nil, invalid("temperature", "%v is negative", *r.Temperature)
	case j.request.Sampling.TopP <= 0 || j.request.Sampling.TopP > 1:
		return nil, invalid("top_p", "%v is not above 0 and at most 1", *r.TopP)
	case value(r.TopK, 0) < -1:
		return nil, invalid("top_k", "%d is neither positive nor 0 or -1, which keep all", *r.TopK)
	case !(j.request.Sampling.MinP >= 0 && j.request.Sampling.MinP <= 1):
		return nil, invalid("min_p", "%v is not between 0 and 1", *r.MinP)
	case len(r.Stop) > maxStops:
		return nil, invalid("stop", "%d strings are more than %d", len(r.Stop), maxStops)
	case r.FrequencyPenalty != 0:
		return nil, invalid("frequency_penalty", "not supported; leave it at 0")
	case r.PresencePenalty != 0:
		return nil, invalid("presence_penalty", "not supported; leave it at 0")
	case len(r.LogitBias) > 0:
		return nil, invalid("logit_bias", "not supported")
	}
	for _, stop := range r.Stop {
		if stop == "" || len(stop) > maxStopBytes {
			return nil, invalid("stop", "a string of %d bytes; want 1 to %d", len(stop), maxStopBytes)
		}
	}
	return j, nil
}

func (j *job) setMaxTokens(param string, n *int) error {
	if n == nil {
		return nil
	}
	if *n < 1 {
		return invalid(param, "%d is not positive", *n)
	}
	j.maxTokens = *n
	return nil
}

func (s *Server) chatJob(r *chatRequest) (*job, error) {
	j, err := s.job(&r.settings)
	if err != nil {
		return nil, err
	}
	if err := j.setMaxTokens("max_completion_tokens", r.MaxCompletionTokens); err != nil {
		return nil, err
	}
	var choice string
	switch {
	case s.opts.Chat == nil:
		return nil, invalid("", "model %q has no chat format; use /v1/completions", s.opts.Name)
	case len(r.Messages) == 0:
		return nil, invalid("messages", "there are none")
	case r.TopLogprobs < 0 || r.TopLogprobs > maxTop:
		return nil, invalid("top_logprobs", "%d is not between 0 and %d", r.TopLogprobs, maxTop)
	case r.TopLogprobs > 0 && !r.Logprobs:
		return nil, invalid("top_logprobs", "only log-probabilities have them; set logprobs")
	case r.ResponseFormat != nil && r.ResponseFormat.Type != "text":
		return nil, invalid("response_format", "%q is not supported; answers are text", r.ResponseFormat.Type)
	case len(r.ToolChoice) > 0 && (json.Unmarshal(r.ToolChoice, &choice) != nil || choice != "auto" && choice != "none"):
		return nil, invalid("tool_choice", "%s is not supported; there are auto and none", r.ToolChoice)
	}
	for i, t := range r.Tools {
		if t.Type != "function" || t.Function.Name == "" {
			return nil, invalid("tools", "number %d is not a function with a name", i)
		}
	}
	if choice != "none" {
		j.tools = r.Tools
	}
	if len(j.tools) > 0 {
		j.ends = s.opts.Chat.CallEnds()
	}
	j.logprobs, j.request.Alternatives = r.Logprobs, r.TopLogprobs
	j.request.StopTokens = s.opts.Chat.StopTokens()
	prompt, err := s.opts.Chat.Prompt(r.Messages, j.tools)
	if err != nil {
		return nil, invalid("", "%v", err)
	}
	j.prompts = [][]int32{prompt}
	return j, s.fit(j, "messages")
}

func (s *Server) textJob(r *textRequest) (*job, error) {
	// Who wants a prompt scored asks for no new tokens.
	scoreOnly := r.Echo && r.MaxTokens != nil && *r.MaxTokens == 0
	if scoreOnly {
		r.MaxTokens = nil
	}
	j, err := s.job(&r.settings)
	if err != nil {
		return nil, err
	}
	j.echo, j.scoreOnly = r.Echo, scoreOnly
	if j.maxTokens == 0 {
		j.maxTokens = 16 // OpenAI's default
	}
	top := value(r.Logprobs, 0)
	switch {
	case r.Echo && r.Logprobs != nil && s.opts.Score == nil:
		return nil, invalid("echo", "this server does not score prompts; leave out logprobs")
	case r.Echo && top > 0:
		return nil, invalid("logprobs", "the tokens of an echoed prompt have no alternatives; ask for 0")
	case top < 0 || top > maxTop:
		return nil, invalid("logprobs", "%d is not between 0 and %d", top, maxTop)
	case r.Suffix != "":
		return nil, invalid("suffix", "not supported")
	case r.BestOf != nil && *r.BestOf != j.n:
		return nil, invalid("best_of", "not supported; leave it out")
	}
	j.logprobs, j.request.Alternatives = r.Logprobs != nil, top
	j.request.StopTokens = s.opts.StopTokens
	j.prompts = r.Prompt.ids
	for _, text := range r.Prompt.texts {
		j.prompts = append(j.prompts, s.tokenizer.EncodeSpecial(text))
	}
	if len(j.prompts)*j.n > maxChoices {
		return nil, invalid("prompt", "%d prompts with %d choices each are more than %d choices", len(j.prompts), j.n, maxChoices)
	}
	return j, s.fit(j, "prompt")
}

// fit checks the prompts, and that there is room for an answer to each.
func (s *Server) fit(j *job, param string) error {
	if len(j.prompts) == 0 {
		return invalid(param, "there is none")
	}
	for _, p := range j.prompts {
		if len(p) == 0 {
			return invalid(param, "it is empty")
		}
		if len(p) >= s.opts.Context {
			err := asAPIError(invalid(param, "%d tokens leave no room for an answer in a context of %d", len(p), s.opts.Context))
			err.Code = "context_length_exceeded"
			return err
		}
		for _, id := range p {
			if id < 0 || int(id) >= s.tokenizer.VocabSize() {
				return invalid(param, "token %d is outside the vocabulary of %d", id, s.tokenizer.VocabSize())
			}
		}
	}
	return nil
}

func value[T any](p *T, absent T) T {
	if p == nil {
		return absent
	}
	return *p
}
