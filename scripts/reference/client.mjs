// OpenAI's own Node client against a running `ssr serve`: what it sends must be
// understood, what it reads must be what it expects, and answers must be what the API
// promises of them. Ends with status 1 at the first that is not.
//
//     npm install --prefix DIR openai@6
//     ssr serve --model MODEL --address 127.0.0.1:8000 &
//     node scripts/reference/client.mjs DIR http://127.0.0.1:8000/v1
//
// The model must call tools: a policy made by scripts/make-policy.sh does.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import path from 'node:path';

const [dir, baseURL] = process.argv.slice(2);
if (!baseURL) {
  console.error('usage: client.mjs DIR URL; DIR has node_modules/openai');
  process.exit(2);
}
const { OpenAI } = createRequire(path.resolve(dir) + path.sep)('openai');
const client = new OpenAI({ baseURL, apiKey: 'none is needed', maxRetries: 0, timeout: 600_000 });
const messages = [{ role: 'system', content: 'You repair programs.' }, { role: 'user', content: 'hello' }];
const tools = [{
  type: 'function',
  function: {
    name: 'bash', description: 'Runs a command.', strict: false,
    parameters: { type: 'object', properties: { command: { type: 'string' } }, required: ['command'] },
  },
}];
let model;
const chat = (more) => client.chat.completions.create({ model, messages, max_tokens: 24, seed: 3, ...more });
const text = (more) => client.completions.create({ model, prompt: 'def split(', max_tokens: 12, seed: 3, ...more });
const collect = async (stream) => {
  const all = [];
  for await (const chunk of stream) all.push(chunk);
  return all;
};
const refused = async (wanted, promise) => {
  const err = await promise.then(() => assert.fail(`${JSON.stringify(wanted)} was not refused`), (e) => e);
  if (!(err instanceof OpenAI.APIError)) throw err;
  for (const [key, value] of Object.entries(wanted)) assert.equal(err[key], value, `${key} of ${err.message}`);
};

const checks = {
  async 'the list of models'() {
    const all = (await client.models.list()).data;
    assert.equal(all.length, 1);
    model = all[0].id;
    assert.deepEqual(await client.models.retrieve(model), all[0]);
    assert.equal(all[0].object, 'model');
    await refused({ status: 404, code: 'model_not_found' }, client.models.retrieve('gpt-none'));
  },

  async 'a chat completion'() {
    const r = await chat();
    assert.equal(r.object, 'chat.completion');
    assert.equal(r.model, model);
    assert.ok(Math.abs(r.created - Date.now() / 1000) < 600);
    const [c, ...rest] = r.choices;
    assert.equal(rest.length, 0);
    assert.equal(c.index, 0);
    assert.equal(c.message.role, 'assistant');
    assert.equal(c.logprobs, null);
    assert.ok(['stop', 'length'].includes(c.finish_reason));
    assert.equal(r.usage.total_tokens, r.usage.prompt_tokens + r.usage.completion_tokens);
    if (c.finish_reason === 'length') assert.equal(r.usage.completion_tokens, 24);
  },

  async 'seeds'() {
    const contents = async (seed) => (await chat({ seed, n: 4 })).choices.map((c) => c.message.content);
    const three = await contents(3);
    assert.deepEqual(await contents(3), three);
    assert.notDeepEqual(await contents(4), three);
    const cold = (await chat({ temperature: 0, n: 3 })).choices.map((c) => c.message.content);
    assert.equal(new Set(cold).size, 1);
    const alike = await Promise.all([...Array(8)].map(() => contents(3)));
    for (const a of alike) assert.deepEqual(a, three); // whatever else is in the batch
  },

  async 'log-probabilities'() {
    const r = await chat({ logprobs: true, top_logprobs: 5 });
    const [c] = r.choices;
    const tokens = c.logprobs.content;
    assert.equal(tokens.length, r.usage.completion_tokens - (c.finish_reason === 'stop' ? 1 : 0));
    assert.equal(Buffer.concat(tokens.map((t) => Buffer.from(t.bytes))).toString(), c.message.content);
    for (const t of tokens) {
      assert.equal(t.top_logprobs.length, 5);
      const best = t.top_logprobs.map((a) => a.logprob);
      assert.deepEqual(best, [...best].sort((a, b) => b - a));
      assert.ok(best.reduce((sum, lp) => sum + Math.exp(lp), 0) < 1 + 1e-4);
      const same = t.top_logprobs.find((a) => a.bytes.join() === t.bytes.join());
      if (same) assert.ok(Math.abs(same.logprob - t.logprob) < 1e-5);
      else assert.ok(t.logprob <= best.at(-1));
    }
    const greedy = (await chat({ logprobs: true, top_logprobs: 1, temperature: 0 })).choices[0].logprobs.content;
    for (const t of greedy) assert.deepEqual(t.top_logprobs[0].bytes, t.bytes);
  },

  async 'streams'() {
    const options = { n: 3, logprobs: true };
    const whole = await chat(options);
    const chunks = await collect(await chat({ ...options, stream: true, stream_options: { include_usage: true } }));
    const usage = chunks.pop();
    assert.deepEqual(usage.choices, []);
    assert.deepEqual(usage.usage, whole.usage);
    for (const c of whole.choices) {
      const own = chunks.flatMap((k) => k.choices).filter((k) => k.index === c.index);
      assert.equal(own[0].delta.role, 'assistant');
      assert.equal(own.map((k) => k.delta.content ?? '').join(''), c.message.content);
      assert.deepEqual(own.flatMap((k) => k.logprobs.content), c.logprobs.content);
      assert.deepEqual(own.map((k) => k.finish_reason).filter(Boolean), [c.finish_reason]);
    }
    assert.ok(chunks.every((k) => k.id === chunks[0].id && k.object === 'chat.completion.chunk'));
    const helper = await client.chat.completions.stream({ model, messages, max_tokens: 24, seed: 3, n: 1 }).finalChatCompletion();
    assert.equal(helper.choices[0].message.content, whole.choices[0].message.content);
  },

  async 'stop strings'() {
    const { text: all } = (await text({ max_tokens: 40 })).choices[0];
    assert.ok(all.length > 4, all);
    const stop = all.slice(2, 4);
    const [cut] = (await text({ max_tokens: 40, stop })).choices;
    assert.equal(cut.text, all.slice(0, all.indexOf(stop)));
    assert.equal(cut.finish_reason, 'stop');
    const [listed] = (await text({ max_tokens: 40, stop: ['\u0000', stop] })).choices;
    assert.equal(listed.text, cut.text);
  },

  async 'tools'() {
    let call, turn;
    for (let seed = 0; seed < 16 && !call; seed++) {
      const r = await chat({ tools, tool_choice: 'auto', seed, max_tokens: 400 });
      turn = { seed, choice: r.choices[0] };
      call = r.choices[0].message.tool_calls?.[0];
    }
    assert.ok(call, 'in 16 turns the model called no tool; serve one that was trained to');
    assert.equal(turn.choice.finish_reason, 'tool_calls');
    assert.equal(call.type, 'function');
    assert.equal(call.function.name, 'bash');
    assert.equal(typeof JSON.parse(call.function.arguments).command, 'string');

    const chunks = await collect(await chat({ tools, seed: turn.seed, max_tokens: 400, stream: true }));
    const parts = chunks.flatMap((k) => k.choices[0].delta.tool_calls ?? []);
    assert.equal(parts.map((p) => p.function.arguments).join(''), call.function.arguments);
    assert.equal(parts[0].index, 0);
    assert.equal(chunks.at(-1).choices[0].finish_reason, 'tool_calls');
    const helper = await client.chat.completions.stream({ model, messages, tools, seed: turn.seed, max_tokens: 400 }).finalChatCompletion();
    assert.equal(helper.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);

    const history = [...messages, turn.choice.message, { role: 'tool', tool_call_id: call.id, content: 'ok' }];
    const next = await chat({ messages: history, tools });
    const bare = await chat({ tools });
    assert.ok(next.usage.prompt_tokens > bare.usage.prompt_tokens);
    const silent = await chat({ tools, tool_choice: 'none', seed: turn.seed, max_tokens: 400 });
    assert.equal(silent.choices[0].message.tool_calls, undefined);

    // The client's own loop: it runs the tool, sends the result, and asks again.
    let ran = 0;
    const runner = client.chat.completions.runTools({
      model, messages, seed: turn.seed, max_tokens: 400,
      tools: [{ type: 'function', function: { ...tools[0].function, strict: undefined, parse: JSON.parse, function: async () => `run ${++ran}` } }],
    }, { maxChatCompletions: 2 });
    await runner.done();
    assert.ok(ran >= 1);
    assert.ok(runner.messages.some((m) => m.role === 'tool' && m.content === 'run 1'));
  },

  async 'completions'() {
    const r = await text({ prompt: ['the', 'return '], n: 2, logprobs: 2 });
    assert.equal(r.object, 'text_completion');
    assert.deepEqual(r.choices.map((c) => c.index), [0, 1, 2, 3]);
    for (const c of r.choices) {
      const { tokens, token_logprobs, top_logprobs, text_offset } = c.logprobs;
      assert.ok([token_logprobs, top_logprobs, text_offset].every((l) => l.length === tokens.length));
      assert.ok(token_logprobs.every((lp) => lp <= 0));
    }
    const [echoed] = (await text({ prompt: 'return x', max_tokens: 4, echo: true, logprobs: 0 })).choices;
    assert.ok(echoed.text.startsWith('return x'));
    assert.equal(echoed.logprobs.token_logprobs[0], null);
    const ids = await text({ prompt: [70, 71, 72], max_tokens: 3 });
    assert.equal(ids.usage.prompt_tokens, 3);
    const whole = (await text()).choices[0];
    const streamed = await collect(await text({ stream: true }));
    assert.equal(streamed.map((k) => k.choices[0].text).join(''), whole.text);
    assert.equal(streamed.at(-1).choices[0].finish_reason, whole.finish_reason);
  },

  async 'errors'() {
    await refused({ status: 404, code: 'model_not_found', param: 'model' }, chat({ model: 'gpt-none' }));
    await refused({ status: 400, param: 'temperature', type: 'invalid_request_error' }, chat({ temperature: -1 }));
    await refused({ status: 400, param: 'top_logprobs' }, chat({ top_logprobs: 3 }));
    await refused({ status: 400, param: 'n' }, chat({ n: 0 }));
    await refused({ status: 400, param: 'max_tokens' }, chat({ max_tokens: 0 }));
    await refused({ status: 400, param: 'messages' }, chat({ messages: [] }));
    await refused({ status: 400, param: 'response_format' }, chat({ response_format: { type: 'json_object' } }));
    await refused({ status: 400, param: 'tool_choice' }, chat({ tools, tool_choice: 'required' }));
    await refused({ status: 400, param: 'frequency_penalty' }, chat({ frequency_penalty: 1 }));
    await refused({ status: 400, param: 'messages', code: 'context_length_exceeded' },
      chat({ messages: [{ role: 'user', content: 'word '.repeat(100_000) }] }));
    await refused({ status: 400, param: 'top_logprobs' }, chat({ top_logprobs: 3, stream: true })); // before a stream begins
    await refused({ status: 404 }, client.embeddings.create({ model, input: 'x' }));
  },

  async 'a client that goes'() {
    const stop = new AbortController();
    setTimeout(() => stop.abort(), 20);
    const err = await client.chat.completions.create({ model, messages, n: 16, max_tokens: 900 }, { signal: stop.signal }).catch((e) => e);
    assert.ok(err instanceof OpenAI.APIUserAbortError, String(err));
    const stream = await chat({ stream: true, max_tokens: 900 });
    for await (const chunk of stream) {
      assert.ok(chunk.id);
      break; // the client closes the connection
    }
    assert.equal((await chat({ max_tokens: 1 })).usage.completion_tokens, 1); // and the server goes on
  },

  async 'what the client sends beside it'() {
    const r = await chat({
      user: 'u', metadata: { a: 'b' }, store: false, top_p: 0.9, presence_penalty: 0, frequency_penalty: 0, logit_bias: {}, stop: null,
      response_format: { type: 'text' }, max_tokens: undefined, max_completion_tokens: 5, service_tier: 'auto', stream: false,
      messages: [{ role: 'developer', content: 'a' }, { role: 'user', name: 'n', content: [{ type: 'text', text: 'b' }] }],
    });
    assert.ok(r.usage.completion_tokens <= 5);
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check().catch((e) => {
    console.error(`${name}: ${e.stack}`);
    process.exit(1);
  });
  console.log(`ok  ${name}`);
}
