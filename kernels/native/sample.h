// Drawing a token from a row of logits.

static thread_local Scratch sample_;

struct Candidate {
  float z; // logit
  float w; // its weight after temperature, at most 1
  int32_t id;
};
// Better is the order of candidates: the higher logit, the lower id on a tie.
struct Better {
  bool operator()(const Candidate &a, const Candidate &b) const { return a.z > b.z || (a.z == b.z && a.id < b.id); }
};

// reach returns the candidate at which the weights of c[n], best first, add up to
// mass; the worst one when they never do. It reorders c and takes linear time.
static Candidate reach(Candidate *c, long n, double mass) {
  for (;;) {
    long half = n / 2;
    if (half == 0) return c[0];
    std::nth_element(c, c + half, c + n, Better());
    double sum = 0;
    for (long i = 0; i < half; i++) sum += c[i].w;
    if (sum >= mass) {
      n = half;
    } else {
      mass -= sum;
      c += half;
      n -= half;
    }
  }
}

INLINE int32_t argmax(const float *x, long V) {
  float m = row_max(x, V);
  for (long i = 0; i < V; i++)
    if (x[i] == m) return int32_t(i);
  return -1;
}

// The draw is the inverse of the cumulative distribution in ascending id order.
// u is in [0, 1). Returns -1 when the row holds a NaN or has no finite maximum.
static int32_t sample(const float *x, long V, double temperature, long topk, double topp, double minp, double u, float *lp,
                      float *slp) {
  int32_t best = argmax(x, V);
  if (best < 0 || !(x[best] - x[best] == 0)) return -1;
  int32_t id = best;
  const float mx = x[best];
  double kept = 0, weight = 0;
  if (temperature > 0) {
    const float inv = float(1 / temperature);
    if ((topk <= 0 || topk >= V) && (topp <= 0 || topp >= 1) && minp <= 0) {
      const long chunk = 256, nc = (V + chunk - 1) / chunk;
      float *w = sample_.get<float>(V + 2 * nc);
      double total = 0;
      for (long c = 0; c < V; c += chunk) {
        long n = V - c < chunk ? V - c : chunk;
        each<float>(n, [&](long i, long k) { put(w + c + i, vexp((get(x + c + i, k) - mx) * inv), k); });
        total += row_sum(w + c, n);
      }
      double want = u * total, at = 0;
      id = -1;
      for (long c = 0; c < V; c += chunk) {
        long n = V - c < chunk ? V - c : chunk;
        double s = row_sum(w + c, n);
        if (at + s <= want && c + chunk < V) {
          at += s;
          continue;
        }
        for (long i = c; i < V; i++) {
          if (w[i] <= 0) continue;
          id = int32_t(i); // the last token with weight, should rounding run past the end
          at += w[i];
          if (at > want) break;
        }
        break;
      }
      if (id < 0) id = best;
      kept = total;
      weight = w[id];
    } else {
      float *w = sample_.get<float>(4 * V);
      Candidate *c = (Candidate *)(w + V), worst = {-INFINITY, 0, int32_t(V)};
      each<float>(V, [&](long i, long k) { put(w + i, vexp((get(x + i, k) - mx) * inv), k); });
      for (long i = 0; i < V; i++) c[i] = {x[i], w[i], int32_t(i)};
      long n = V;
      if (topk > 0 && topk < V) {
        std::nth_element(c, c + topk - 1, c + V, Better());
        n = topk;
        worst = c[n - 1];
      }
      if (topp > 0 && topp < 1) {
        double total = 0;
        for (long i = 0; i < n; i++) total += c[i].w;
        // What is this light cannot matter even all together.
        const double light = (1 - topp) * total / double(n);
        long heavy = 0;
        for (long i = 0; i < n; i++)
          if (c[i].w > light) c[heavy++] = c[i];
        worst = reach(c, heavy, topp * total);
      }
      // The best token's weight is 1.
      auto keeps = [&](long i) {
        return w[i] >= minp && (x[i] > worst.z || (x[i] == worst.z && i <= worst.id));
      };
      for (long i = 0; i < V; i++)
        if (keeps(i)) kept += w[i];
      double want = u * kept, at = 0;
      for (long i = 0; i < V; i++) {
        if (!keeps(i) || w[i] <= 0) continue;
        id = int32_t(i);
        weight = w[i];
        at += weight;
        if (at > want) break;
      }
    }
  }
  logprob<float>(x, &id, 1, V, V, lp, nullptr, nullptr);
  if (!(*lp - *lp == 0)) return -1;
  if (temperature > 0)
    *slp = float(log(weight / kept));
  else
    *slp = 0;
  return id;
}
