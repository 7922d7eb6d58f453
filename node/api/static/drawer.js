// One job from close by: its timeline, its receipt, why it is where it is, and a button that cancels it.

import { html, useEffect, useRef, useState } from "./preact.js";
import { request } from "./connection.js";
import { count, duration, money, shortId } from "./format.js";

const ENDED = "–";

// Asks again when the job has moved in the live list, and not on a clock of its own.
function useJob(id, moved) {
  const [found, setFound] = useState({});
  useEffect(() => {
    let over = false;
    Promise.all([request("GET", `/api/v1/jobs/${id}`), request("GET", `/api/v1/jobs/${id}/why`)]).then(
      ([trace, why]) => !over && setFound({ trace, why }),
      (error) => !over && setFound({ problem: error.message }),
    );
    return () => {
      over = true;
    };
  }, [id, moved]);
  return found;
}

function Timeline({ trace }) {
  const start = trace.job.started_ms;
  return html`<ol class="timeline">
    ${trace.timeline.map(
      (step) => html`<li>
        <span class="at">${duration(step.at_ms - start)}</span>
        <span><strong>${step.step.replaceAll("_", " ")}</strong> ${describe(step)}</span>
      </li>`,
    )}
    ${trace.steps_left_out > 0 && html`<li class="more">${trace.steps_left_out} steps are left out of the middle</li>`}
    ${trace.is_restored && html`<li class="more">From before the daemon's start: finer steps are lost</li>`}
  </ol>`;
}

function describe(step) {
  return [
    step.peer_id && shortId(step.peer_id),
    step.peers != null && `${step.peers} peers`,
    step.price_max_microcredits != null && `at most ${money(step.price_max_microcredits)}`,
    step.cost_microcredits != null && money(step.cost_microcredits),
    step.tokens_out != null && `${count(step.tokens_out)} tokens`,
    step.code,
    step.message,
  ]
    .filter(Boolean)
    .join(" · ");
}

async function saveEvidence(contract) {
  const answer = await request("GET", `/api/v1/receipts/${contract}`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(answer.bundle, null, 1)], { type: "application/json" }));
  link.download = `souk-${contract.slice(0, 12)}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
}

function Body({ trace, why }) {
  const { job } = trace;
  const [problem, setProblem] = useState(null);
  const act = (work) => () => work().then(() => setProblem(null), (error) => setProblem(error.message));
  return html`<dl>
      <dt>state</dt><dd>${job.state}${job.message ? `: ${job.message}` : ""}</dd>
      <dt>model</dt><dd>${job.model}</dd>
      <dt>as</dt><dd>${job.role}</dd>
      <dt>other party</dt><dd>${job.peer_id ?? ENDED}</dd>
      <dt>tokens</dt><dd>${count(job.tokens_in)} in, ${count(job.tokens_out)} out</dd>
      <dt>first token</dt><dd>${duration(job.first_token_ms)}</dd>
      <dt>cost</dt><dd>${money(job.cost_microcredits)}</dd>
      <dt>contract</dt><dd class="id">${job.contract_id ?? "none"}</dd>
    </dl>
    <p>${why.summary}</p>
    <h3>Timeline</h3>
    <${Timeline} trace=${trace} />
    ${problem && html`<p class="lost" role="alert">${problem}</p>`}
    <div class="actions">
      ${job.ended_ms === null && job.role !== "provider" &&
      html`<button onClick=${act(() => request("POST", `/api/v1/jobs/${job.job_id}/cancel`, {}))}>Cancel the job</button>`}
      ${job.contract_id &&
      html`<button onClick=${act(() => saveEvidence(job.contract_id))}>Save the receipt</button>`}
    </div>
    ${job.contract_id && html`<p class="more">Anybody can check the file: <code>souk receipts verify FILE</code></p>`}`;
}

export function JobDrawer({ id, snapshot, onClose }) {
  const dialog = useRef(null);
  const live = snapshot?.jobs.find((job) => job.job_id === id || job.contract_id === id);
  const { trace, why, problem } = useJob(id, `${live?.state} ${live?.ended_ms}`);
  useEffect(() => dialog.current.showModal(), []);
  return html`<dialog ref=${dialog} onClose=${onClose} aria-label="Job">
    <header><h2>Job ${shortId(id)}</h2><button class="quiet" onClick=${() => dialog.current.close()}>Close</button></header>
    ${problem && html`<p class="lost" role="alert">${problem}</p>`}
    ${trace ? html`<${Body} trace=${trace} why=${why} />` : !problem && html`<p class="empty">Loading…</p>`}
  </dialog>`;
}
