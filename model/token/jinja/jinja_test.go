package jinja

import (
	"strings"
	"testing"
)

// What is expected was printed by Jinja2 3.1.6 with trim_blocks, lstrip_blocks and
// break and continue on; scripts/reference/template.py compares whole chats.
func TestRender(t *testing.T) {
	vars, err := Decode([]byte(`{"s": "héllo wörld", "l": [3, 1, 2], "d": {"b": 1, "a": [true, null, 1.5], "items": "x"}, "e": [], "n": null}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ source, want string }{
		{"{{ 1 + 2 * 3 ** 2 - 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** -1 }}", "16 -4 2 3.5 0.5"},
		{"{{ 'a' ~ 1 ~ none ~ true }} {{ 'ab' * 2 }} {{ [1] + ['x'] }}", "a1NoneTrue abab [1, 'x']"},
		{"{{ 1 < 2 < 3 }} {{ 1 == 1.0 }} {{ 'a' in s }} {{ 2 in l }} {{ 'b' not in d }} {{ not 0 }}", "True True False True False True"},
		{"{{ s[0] }}{{ s[1] }}{{ s[-1] }} {{ s[1:4] }} {{ s[::-1] }} {{ l[::2] }} {{ l[-1:] }} {{ l[5] }}", "héd éll dlröw olléh [3, 2] [2] "},
		{"{{ l[-1] }} {{ [9][-1] }} {{ [1, 2][::-1] }} {{ ([1, 2] | reverse | list) }}", "2 9 [2, 1] [2, 1]"},
		{"{{ d }} {{ d['items'] }} {{ d.items() | list | length }} {{ d.get('z', 7) }} {{ d.keys() | list }}", "{'b': 1, 'a': [True, None, 1.5], 'items': 'x'} x 3 7 ['b', 'a', 'items']"},
		{"{{ d | tojson }}|{{ d | tojson(indent=2) }}|{{ e | tojson(indent=2) }}", "{\"b\": 1, \"a\": [true, null, 1.5], \"items\": \"x\"}|{\n  \"b\": 1,\n  \"a\": [\n    true,\n    null,\n    1.5\n  ],\n  \"items\": \"x\"\n}|[]"},
		{"{{ (1 if e else 2) + (3 if l else 4) }}{{ 'x' if false }}", "5"},
		{"{% for a, b in d.items() if a != 'b' %}{{ loop.index }}{{ a }}{{ loop.last }}{% else %}none{% endfor %}", "1aFalse2itemsTrue"},
		{"{% for x in l %}{{ loop.previtem }}<{{ loop.nextitem is defined }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.length }}>{% endfor %}", "<True323>3<True213>1<False103>"},
		{"{% for x in e %}x{% else %}empty{% endfor %}{% for c in 'hé' %}<{{ c }}>{% endfor %}", "empty<h><é>"},
		{"{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}", "023"},
		{"{% set x = 1 %}{% for i in l %}{% set x = i %}{% endfor %}{{ x }}{% set ns = namespace(x=1) %}{% for i in l %}{% set ns.x = i %}{% endfor %}{{ ns.x }}", "12"},
		{"{% set x %}a{{ 1 }}b{% endset %}{{ x | upper }}{% set p, q = 1, 2 %}{{ p + q }}", "A1B3"},
		{"{% macro m(a, b='z') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, b=2) }}", "1z 12"},
		{"a\n  {% if true %}\n  b\n  {% endif %}\n  c {% if true %}\nd{% endif %}\n", "a\n  b\n  c d"},
		{"  {#- x -#}  y {{- ' z ' -}} \n w\n\n", "y z w\n"},
		{"{%+ if true %}\n a {%- endif +%}\n b", " a\n b"},
		{"x\n  {%+ if true +%}\n a{% endif %}", "x\n  \n a"},
		{"{% raw %}{{ x }}{% endraw %}{{ '}}' }}{{ {'a': {'b': '%}'}}.a.b }}", "{{ x }}}}%}"},
		{"{{ ' x ' | trim }}|{{ 'xxaxx'.strip('x') }}|{{ 'a,b,c'.split(',', 1) }}|{{ ' a  b '.split() }}|{{ '\u00e9\\n\"'  }}", "x|a|['a', 'b,c']|['a', 'b']|é\n\""},
		{"{{ l | sort | join('-') }} {{ l | map('string') | join }} {{ l | select('gt', 1) | list }} {{ l | first }} {{ s | length }}", "1-2-3 312 [3, 2] 3 11"},
		{"{{ [{'a': {'b': 1}}, {'a': {'b': 2}}] | map(attribute='a.b') | list }} {{ [{'x': 1}, {}] | selectattr('x', 'defined') | list }}", "[1, 2] [{'x': 1}]"},
		{"{{ u is defined }} {{ n is none }} {{ n is defined }} {{ u | default('d') }} {{ '' | default('d', true) }} {{ n.x is defined }}", "False True True d d False"},
		{"{{ d is mapping }} {{ s is string }} {{ l is iterable }} {{ 3 is odd }} {{ true is boolean }} {{ 1 is number }} {{ s is not none and l is sequence }}", "True True True True True True True"},
		{"{{ 1e3 }} {{ 0.1 + 0.2 }} {{ 1e16 }} {{ 1.0 }} {{ '3' | int + 1 }} {{ 'it\\'s' }} {{ [\"it's\", 'a\"b', '\\n'] }}", "1000.0 0.30000000000000004 1e+16 1.0 4 it's [\"it's\", 'a\"b', '\\n']"},
		{"{{ 'hello world' | title }} {{ 'HELLO wORLD' | capitalize }} {{ 'a-b' | replace('-', '+') }} {{ 'a\nb' | indent(2) }}", "Hello World Hello world a+b a\n  b"},
	} {
		template, err := Parse(c.source)
		if err != nil {
			t.Errorf("%s: %v", c.source, err)
			continue
		}
		d := vars.(*Dict)
		got, err := template.Render(d.values)
		if err != nil || got != c.want {
			t.Errorf("%s\n got %q, %v\nwant %q", c.source, got, err, c.want)
		}
	}
}

func TestErrors(t *testing.T) {
	for source, want := range map[string]string{
		"a\nb{% if x %}":                    "line 2: the template ends before elif or else or endif",
		"{% endif %}":                       `block "endif" is not supported`,
		"{% include '/etc/passwd' %}":       `block "include" is not supported`,
		"{{ x | shout }}":                   `filter "shout" is not supported`,
		"{{ x is loud }}":                   `test "loud" is not supported`,
		"{{ 'a }}":                          "a string does not end",
		"{{ a b }}":                         `unexpected "b" in a tag`,
		"{{ (1 }}":                          `"}" has no opening bracket`,
		"{{ $ }}":                           `unexpected character '$'`,
		"{% break %}":                       "break outside a loop",
		"\n\n{{ x.y }}":                     "line 3: undefined x has no attribute y",
		"{{ 1 + 'a' }}":                     "a number + a string cannot be computed",
		"{{ open('f') }}":                   "undefined open cannot be called",
		"{% for x in none %}{% endfor %}":   "None cannot be iterated over",
		"{{ raise_exception('no ' ~ 1) }}":  "no 1",
		"{{ 1 // 0 }}":                      "division by zero",
		"{{ [] | tojson(sort_keys=true) }}": "tojson with sort_keys is not supported",
		"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}":                                "macros call one another too deeply",
		"{{ " + strings.Repeat("(", 500) + "1" + strings.Repeat(")", 500) + " }}":        "nested too deeply",
		"{% for a in range(60000) %}{% for b in range(60000) %}{% endfor %}{% endfor %}": "runs for too long",
	} {
		template, err := Parse(source)
		if err == nil {
			_, err = template.Render(nil)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: error %v, want one about %q", source, err, want)
		}
	}
}

// FuzzTemplate: no template, however broken, does more than return an error.
func FuzzTemplate(f *testing.F) {
	for _, s := range []string{
		"{% for m in messages[::-1] %}{{ m.role | upper }}{{ m['content'] }}{% endfor %}", "{%- set x = namespace(a=1) -%}{{ x.a ~ 'b' }}",
		"{{ messages | selectattr('role', 'equalto', 'user') | list | tojson(indent=4) }}", "{% raw %}{{{% endraw %}{# c #}", "{% macro m(a, b=2) %}{{ a if b else 1 }}{% endmacro %}",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, source string) {
		messages, err := Decode([]byte(`[{"role": "user", "content": "é"}, {"role": "x", "content": null, "n": 1.5}]`))
		if err != nil {
			t.Fatal(err)
		}
		if template, err := Parse(source); err == nil {
			if _, err := template.Render(map[string]any{"messages": messages}); err != nil && err.Error() == "" {
				t.Error("an error without text")
			}
		}
	})
}
