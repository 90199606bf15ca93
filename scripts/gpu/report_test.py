"""python3 -m unittest scripts/gpu/report_test.py"""
import contextlib
import io
import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import report

# A model with 144 weights in its layer's products (4·(8 + 4) of attention, 3·4·8 of the MLP), 40 in
# the head and, of a rank of adapters, 64; attention takes 16 operations for each token that one sees.
SHAPE = dict(model_type="qwen2", vocab_size=10, hidden_size=4, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
             num_key_value_heads=1)
# A thousand operations and a thousand bytes a second.
MACHINE = dict(kind="machine", float32_gflops=1e-6, bfloat16_gflops=1e-6, gb_per_second=1e-6)
MEMORY = dict(peak=dict.fromkeys(("weights", "gradients", "optimizer", "activations", "cache"), 1), peak_total=9,
              plan=dict.fromkeys(("weights", "gradients", "optimizer", "activations", "cache"), 2), plan_total=10)
OURS = dict(
    device="cuda:0", parameters=184, cache_bytes_per_token=8,
    decode=[dict(batch=2, prompt=6, new=4, tokens_per_second=1.0, step_ms=2000.0), dict(batch=9, prompt=6, new=4, left_out="too | large")],
    prefill=[dict(sequences=2, prompt=6, tokens_per_second=1.0)],
    training=[dict(sequences=3, length=4, tokens_per_second=0.25, seconds_per_step=48.0, memory=MEMORY)],
    step=[dict(groups=1, episodes=2, prompt=2, new=2, seconds=16.0, play_seconds=8.0, update_seconds=8.0, tokens_per_second=0.5,
               trained_tokens_per_second=1.0, sampled_tokens_per_second=0.5, memory=MEMORY,
               turnaround=dict(to_training_seconds=0.1, to_sampling_seconds=0.2, weight_bytes_copied=0),
               agreement=dict(largest=0.001, mean=0.0001, tokens=4))])
PEERS = [
    dict(kind="decode", dtype="bfloat16", batch=2, prompt=6, new=2, tokens_per_second=0.5, prefill_tokens_per_second=4.0),
    dict(kind="decode", dtype="bfloat16", batch=9, prompt=6, setting=[9, 6], left_out="OutOfMemoryError"),
    dict(kind="training", dtype="bfloat16", sequences=3, length=4, lora_rank=2, tokens_per_second=1.0),
]


class Test(unittest.TestCase):
    def setUp(self):
        self.tmp = tempfile.TemporaryDirectory()
        self.addCleanup(self.tmp.cleanup)
        self.dir = pathlib.Path(self.tmp.name)
        self.model = self.dir / "toy"
        self.model.mkdir()
        (self.model / "config.json").write_text(json.dumps(SHAPE))
        self.lines = []

    def section(self, title, status, text, command):
        log = self.dir / f"log{len(self.lines)}"
        log.write_text(text)
        self.lines.append(f"{title}\t{status}\t3\t{log}\t{command}")

    def report(self):
        sections = self.dir / "sections"
        sections.write_text("\n".join(self.lines) + "\n")
        with contextlib.redirect_stdout(io.StringIO()):
            failed = report.main(sections, self.dir, "Toy GPU 1, 5.0, 8 MiB", "abc", "2.6.0", "2", "7")
        return failed, json.loads((self.dir / "toy-gpu-1.json").read_text()), (self.dir / "toy-gpu-1.md").read_text()

    def both(self, status="0", tail=""):
        self.section("peers", "124", "a warning {\n" + "\n".join(json.dumps(p if "setting" not in p else p | {"tokens_per_second": 1}) for p in [
            MACHINE] + [p | {"model": str(self.model)} for p in PEERS]) + '\n{"kind": "cut o', "python3 scripts/bench/peer.py [...]")
        self.section("ours", status, "computing\n" + json.dumps(OURS, indent=2) + tail,
                     f"bin/ssr-check bench --json --dtype bfloat16 --model {self.model} --parts decode")

    def test_figures(self):
        self.both()
        _, r, text = self.report()
        decode, left = r["decode"]
        # 2·(2·184 + 16·8) = 992 operations take longer than 184·2 + 2·8·8 = 496 bytes.
        self.assertAlmostEqual(decode["roofline_tokens_per_second"], 2 / 0.992)
        self.assertAlmostEqual(decode["roofline_share"], 0.496)
        self.assertEqual((decode["peer_tokens_per_second"], decode["ratio"]), (0.5, 2.0))
        self.assertNotIn("roofline_share", left)
        self.assertIn("left out: too / large", text)
        # 2·(2·6·144 + 16·6·6/2 + 2·40) operations for 12 tokens.
        self.assertAlmostEqual(r["prefill"][0]["roofline_tokens_per_second"], 12 / 4.192)
        self.assertEqual(r["prefill"][0]["ratio"], 0.25)
        # 6·184 + 6·4·4 operations a token, and 28 bytes a weight for AdamW.
        training = r["training"][0]
        self.assertAlmostEqual(training["mfu"], 0.25 * 1.2)
        self.assertAlmostEqual(training["roofline_tokens_per_second"], 12 / (12 * 1.2 + 28 * 0.184))
        self.assertNotIn("ratio", training)  # the peer's is of adapters
        # A prompt of two tokens, 2·2·144 + 16·2·2/2 + 2·40 operations; one token more of two sequences,
        # whose context is of three on average; and an update on eight tokens.
        step = r["step"][0]
        seconds = 0.688 + 2 * (2 * 0.184 + 0.016 * 3) + 8 * 1.2 + 28 * 0.184
        self.assertAlmostEqual(step["roofline_tokens_per_second"], 8 / seconds)
        self.assertAlmostEqual(step["mfu"], 1.2)

    def test_adapters(self):
        OURS["training"].append(OURS["training"][0] | {"lora_rank": 2})
        self.addCleanup(OURS["training"].pop)
        self.both()
        _, r, _ = self.report()
        # 4·184 for frozen weights, 6·2·64 for adapters, 6·4·4 for attention.
        self.assertAlmostEqual(r["training"][1]["mfu"], 0.25 * 1.6)
        self.assertEqual(r["training"][1]["ratio"], 0.25)

    def test_goals(self):
        self.both()
        _, r, _ = self.report()
        self.assertEqual([g["reached"] for g in r["goals"]], [False, False, None, None, True, True, None, True, True])
        self.assertEqual(r["goals"][0]["found"], "0 of 1 settings; the least 50%, toy, batch 2, context 10")
        step = OURS["step"][0]
        before, step["agreement"] = step["agreement"], dict(largest=1e-9, mean=1e-9, tokens=4)
        self.addCleanup(step.update, agreement=before)
        self.section("exact", "0", json.dumps(OURS), f"bin/ssr-check bench --json --model {self.model} --parts step --determinism")
        _, r, _ = self.report()
        self.assertIs(r["goals"][6]["reached"], False)  # not exactly 0

    def test_status(self):
        self.section("a test", "0", "--- SKIP: TestX", "x.test")
        self.section("too late", "-", "", "y")
        failed, r, text = self.report()
        self.assertFalse(failed)
        self.assertEqual([s["result"] for s in r["sections"]], ["passed", "left out"])
        self.assertIn("| a test | passed, 1 skipped | 3 |", text)
        self.assertIn("There was no time left for: too late.", text)
        # A benchmark that was interrupted has the figures that it printed.
        self.both(status="130", tail="\nssr: interrupted")
        failed, r, text = self.report()
        self.assertTrue(failed)
        self.assertEqual(len(r["decode"]), 2)
        self.assertIn("| ours | FAILED with status 130 | 3 |", text)
        self.assertIn("| peers | stopped | 3 |", text)


if __name__ == "__main__":
    unittest.main()
