// Counts of the server only grow; what is shown are differences between two polls.
const KEPT_MS = 180000;
const WINDOW_MS = 30000;

const minus = (now, before) => now.map((count, place) => count - (before[place] ?? 0));
const countIn = (buckets) => buckets.slice(0, -1).reduce((sum, count) => sum + count, 0);

// A quantile read from a histogram's buckets, linear inside a bucket; null when nothing was counted.
const quantile = (bounds, buckets, share) => {
  const wanted = share * countIn(buckets);
  if (wanted <= 0) return null;
  let below = 0;
  for (let place = 0; place < bounds.length; place += 1) {
    const here = buckets[place];
    if (below + here >= wanted) {
      const low = place ? bounds[place - 1] : 0;
      return low + ((wanted - below) / here) * (bounds[place] - low);
    }
    below += here;
  }
  return bounds.at(-1);
};

class History {
  samples = [];

  add(time, found) {
    const last = this.samples.at(-1);
    // A server that was started anew counts from zero.
    const fell = last && found.models.some((model) => model.answers < (this.of(last, model.name)?.answers ?? 0));
    if (fell) this.samples = [];
    this.samples.push({ time, found });
    while (this.samples[0].time < time - KEPT_MS) this.samples.shift();
  }

  of(sample, name) {
    return sample.found.models.find((model) => model.name === name);
  }

  // The model now, and as it was when the window began; null until there are two samples.
  window(name) {
    const last = this.samples.at(-1);
    const first = this.samples.find((sample) => sample.time >= last.time - WINDOW_MS);
    const before = first === last ? null : this.of(first, name);
    return before && { now: this.of(last, name), before, seconds: (last.time - first.time) / 1000 };
  }

  // For each pair of neighbouring polls what happened between them.
  steps(name) {
    const steps = [];
    for (let place = 1; place < this.samples.length; place += 1) {
      const [before, after] = [this.samples[place - 1], this.samples[place]];
      const [from, to] = [this.of(before, name), this.of(after, name)];
      if (!from || !to) continue;
      const latency = minus(to.latency, from.latency);
      const bounds = after.found.latency_bounds_s;
      steps.push({
        time: after.time,
        perSecond: (total(to.statuses) - total(from.statuses)) / ((after.time - before.time) / 1000),
        median: quantile(bounds, latency, 0.5),
        slow: quantile(bounds, latency, 0.99),
      });
    }
    return steps;
  }
}

const total = (statuses) => Object.values(statuses).reduce((sum, count) => sum + count, 0);
const errors = (statuses) =>
  Object.entries(statuses).reduce((sum, [code, count]) => sum + (Number(code) >= 400 ? count : 0), 0);
