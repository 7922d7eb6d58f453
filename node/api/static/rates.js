// Tokens per second, from how far each job has come between two snapshots.

const SECONDS = 600;

// Returns the last ten minutes with one more point: { at, served, bought } in tokens per second.
export function noteRates(last, snapshot) {
  const tokens = new Map();
  const sums = { served: 0, bought: 0 };
  for (const job of snapshot.jobs) {
    const key = `${job.role} ${job.contract_id ?? job.job_id}`;
    tokens.set(key, job.tokens_out);
    const news = job.tokens_out - (last.tokens.get(key) ?? (last.at ? 0 : job.tokens_out));
    sums[job.role === "requester" ? "bought" : "served"] += Math.max(0, news);
  }
  const at = snapshot.at_ms;
  const seconds = last.at ? Math.max(0.1, (at - last.at) / 1000) : 1;
  const point = { at, served: sums.served / seconds, bought: sums.bought / seconds };
  const rates = [...last.rates, point].filter((it) => it.at > at - SECONDS * 1000);
  return { at, tokens, rates };
}
