// The tables behind the tabs. All sort by a click on a head and filter by a word; a row's button opens what there is.

import { html, useEffect, useState } from "./preact.js";
import { request } from "./connection.js";
import { NONE, age, bytes, count, duration, money, perSecond, shortId } from "./format.js";
import { Findings } from "./overview.js";

const REFRESH_MS = 5000;

// Asks for a view now and again while it is shown, and says when that fails.
function useAnswer(path) {
  const [state, setState] = useState({ answer: null, problem: null });
  useEffect(() => {
    const load = () =>
      !document.hidden &&
      request("GET", path).then(
        (answer) => setState({ answer, problem: null }),
        (error) => setState((now) => ({ ...now, problem: error.message })),
      );
    load();
    const timer = setInterval(load, REFRESH_MS);
    return () => clearInterval(timer);
  }, [path]);
  return state;
}

function Answered({ path, view }) {
  const { answer, problem } = useAnswer(path);
  return html`${problem && html`<p class="lost" role="alert">${problem}</p>`}
    ${answer ? view(answer) : !problem && html`<p class="empty">Loading…</p>`}`;
}

// columns: { name, value(row) to sort and filter by, cell(row) to show, number }.
function Table({ columns, rows, empty, label }) {
  const [order, setOrder] = useState({ column: null, down: false });
  const [word, setWord] = useState("");
  const values = (row) => columns.map((column) => column.value(row) ?? "");
  let found = word
    ? rows.filter((row) => values(row).join(" ").toLowerCase().includes(word.toLowerCase()))
    : [...rows];
  if (order.column !== null) {
    const { value } = columns[order.column];
    const way = order.down ? -1 : 1;
    const rank = (row) => value(row) ?? -1;
    found.sort((a, b) => way * (Number(rank(a) > rank(b)) - Number(rank(a) < rank(b))));
  }
  if (!rows.length) return html`<p class="empty">${empty}</p>`;
  const head = (column, i) => {
    const sorted = order.column === i;
    const direction = sorted ? (order.down ? "descending" : "ascending") : "none";
    return html`<th scope="col" aria-sort=${direction} class=${column.number ? "number" : ""}>
      <button class="head" onClick=${() => setOrder({ column: i, down: sorted && !order.down })}>${column.name}</button>
    </th>`;
  };
  return html`<label class="filter">Filter <input type="search" value=${word} onInput=${(event) => setWord(event.target.value)} /></label>
    <div class="scroll">
      <table aria-label=${label}>
        <thead><tr>${columns.map(head)}</tr></thead>
        <tbody>
          ${found.map(
            (row) => html`<tr>
              ${columns.map(
                (column) => html`<td class=${column.number ? "number" : ""}>${(column.cell ?? column.value)(row)}</td>`,
              )}
            </tr>`,
          )}
        </tbody>
      </table>
    </div>
    ${!found.length && html`<p class="empty">Nothing here has “${word}” in it.</p>`}`;
}

export function JobsTable({ jobs, now, onJob }) {
  const key = (job) => job.contract_id ?? job.job_id;
  const open = (job) => onJob(job.role === "provider" ? key(job) : job.job_id);
  const speed = (job) => {
    const ms = (job.ended_ms ?? now) - job.started_ms - (job.first_token_ms ?? 0);
    return job.first_token_ms !== null && job.tokens_out > 1 && ms > 0 ? (job.tokens_out * 1000) / ms : null;
  };
  const columns = [
    { name: "job", value: key, cell: (job) => html`<button class="link" onClick=${() => open(job)}>${shortId(key(job))}</button>` },
    { name: "state", value: (job) => job.state, cell: (job) => `${job.state}${job.code ? ` (${job.code})` : ""}` },
    { name: "model", value: (job) => job.model },
    { name: "as", value: (job) => job.role },
    { name: "peer", value: (job) => job.peer_id, cell: (job) => shortId(job.peer_id) },
    { name: "tokens", number: true, value: (job) => job.tokens_out, cell: (job) => count(job.tokens_out) },
    { name: "first token", number: true, value: (job) => job.first_token_ms, cell: (job) => duration(job.first_token_ms) },
    { name: "speed", number: true, value: speed, cell: (job) => perSecond(speed(job)) },
    { name: "cost", number: true, value: (job) => job.cost_microcredits, cell: (job) => money(job.cost_microcredits) },
    { name: "age", number: true, value: (job) => -job.started_ms, cell: (job) => age(job.started_ms, now) },
  ];
  return html`<${Table} label="Jobs" columns=${columns} rows=${jobs}
    empty="No jobs yet. Ask a model in the box above, or: souk run MODEL “Say hello.”" />`;
}

export function Jobs({ snapshot, onJob }) {
  return html`<section class="panel"><h2>Jobs</h2>
    <${JobsTable} jobs=${snapshot.jobs} now=${snapshot.at_ms} onJob=${onJob} />
    <p class="more">The newest since this node began. Contracts of all time: <code>souk receipts ls</code></p>
  </section>`;
}

export function Network() {
  const price = (peer) => Math.min(...peer.models.map((it) => it.price_out));
  const columns = [
    { name: "name", value: (it) => it.name ?? "no advert" },
    { name: "peer", value: (it) => it.peer_id, cell: (it) => html`<span title=${it.peer_id}>${shortId(it.peer_id)}</span>` },
    { name: "state", value: (it) => (it.ban ? "banned" : it.connected ? "connected" : "known") },
    { name: "device", value: (it) => it.devices.map((device) => device.name || device.kind).join(", ") },
    { name: "free memory", number: true, value: (it) => it.devices[0]?.memory_free_bytes, cell: (it) => bytes(it.devices[0]?.memory_free_bytes) },
    { name: "models", value: (it) => it.models.map((model) => model.name).join(", ") },
    { name: "free slots", number: true, value: (it) => it.slots_free, cell: (it) => (it.slots_total === null ? NONE : `${it.slots_free} of ${it.slots_total}`) },
    { name: "queue", number: true, value: (it) => it.queue_ms, cell: (it) => duration(it.queue_ms) },
    { name: "µc per million out", number: true, value: price, cell: (it) => (it.models.length ? count(price(it)) : NONE) },
    { name: "heard", number: true, value: (it) => it.advert_age_ms, cell: (it) => (it.advert_age_ms === null ? NONE : `${duration(it.advert_age_ms)} ago`) },
  ];
  const view = (answer) =>
    html`<${Table} label="Peers" columns=${columns} rows=${answer.peers}
      empty="No peers yet. Give the address of one: souk peers connect ADDR, or p2p.bootstrap in the configuration." />`;
  return html`<section class="panel"><h2>Network</h2><${Answered} path="/api/v1/peers" view=${view} /></section>`;
}

export function Models({ snapshot }) {
  const columns = [
    { name: "model", value: (it) => it.name },
    { name: "id", value: (it) => it.model_id, cell: (it) => html`<span title=${it.model_id}>${shortId(it.model_id)}</span>` },
    { name: "here", value: (it) => (it.local ? "served here" : "no") },
    { name: "peers", number: true, value: (it) => it.peers, cell: (it) => count(it.peers) },
    { name: "context", number: true, value: (it) => it.context_tokens, cell: (it) => `${count(it.context_tokens)} tokens` },
    { name: "µc per million in", number: true, value: (it) => it.price_in, cell: (it) => count(it.price_in) },
    { name: "µc per million out", number: true, value: (it) => it.price_out, cell: (it) => count(it.price_out) },
    { name: "best speed", number: true, value: (it) => it.tokens_per_s, cell: (it) => perSecond(it.tokens_per_s) },
  ];
  return html`<section class="panel"><h2>Models</h2>
    <${Table} label="Models" columns=${columns} rows=${snapshot.models}
      empty="No model yet. Add one: souk models add FOLDER --name NAME" />
    <p class="more">On disk and in memory: <code>souk models ls</code>, <code>souk models add</code>, <code>souk models rm</code></p>
  </section>`;
}

export function Earnings() {
  const columns = [
    { name: "peer", value: (it) => it.peer_id, cell: (it) => html`<span title=${it.peer_id}>${shortId(it.peer_id)}</span>` },
    { name: "earned", number: true, value: (it) => it.earned_microcredits, cell: (it) => money(it.earned_microcredits) },
    { name: "spent", number: true, value: (it) => it.spent_microcredits, cell: (it) => money(it.spent_microcredits) },
    { name: "they owe", number: true, value: (it) => it.unpaid_by_them_microcredits, cell: (it) => money(it.unpaid_by_them_microcredits) },
    { name: "we owe", number: true, value: (it) => it.unpaid_by_us_microcredits, cell: (it) => money(it.unpaid_by_us_microcredits) },
    { name: "sold", value: (it) => tally(it.sold) },
    { name: "bought", value: (it) => tally(it.bought) },
    { name: "last", number: true, value: (it) => it.last_ms, cell: (it) => age(it.last_ms, Date.now()) },
  ];
  const view = (answer) => html`<p>
      Earned ${money(answer.earned_microcredits)}, spent ${money(answer.spent_microcredits)}; peers owe
      ${" "}${money(answer.unpaid_by_them_microcredits)}, this node owes ${money(answer.unpaid_by_us_microcredits)}.
      ${answer.proofs > 0 ? ` ${answer.proofs} proofs of double dealing are kept.` : ""}
    </p>
    <${Table} label="Accounts" columns=${columns} rows=${answer.peers} empty="No contract with anybody yet." />`;
  return html`<section class="panel"><h2>Earnings</h2><${Answered} path="/api/v1/ledger" view=${view} /></section>`;
}

const tally = (states) =>
  Object.entries(states)
    .map(([state, number]) => `${number} ${state}`)
    .join(", ") || NONE;

export function Why({ snapshot }) {
  return html`<section class="panel"><h2>Why this node does not serve or buy, if it does not</h2>
    ${snapshot.findings.length
      ? html`<${Findings} findings=${snapshot.findings} />`
      : html`<p class="empty">Nothing stands in the way of serving or of buying.</p>`}
  </section>`;
}

export function Settings() {
  const columns = [
    { name: "setting", value: (it) => it.name },
    { name: "value", value: (it) => JSON.stringify(it.value) },
    { name: "from", value: (it) => it.origin },
    { name: "changed by", value: (it) => (it.live ? "souk config reload" : "a restart") },
  ];
  const view = (answer) => html`<${Table} label="Settings" columns=${columns} rows=${answer.settings} empty="No settings." />`;
  return html`<section class="panel"><h2>Settings</h2><${Answered} path="/api/v1/config" view=${view} />
    <p class="more">They are changed in the file, by <code>souk config set</code> or with <code>--set</code>, not here.</p></section>`;
}
