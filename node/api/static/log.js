// The newest lines of the node's log, as the daemon keeps them in memory.

import { html, useEffect, useState } from "./preact.js";
import { request } from "./connection.js";

const LINES = 300;
const LEVELS = ["debug", "info", "warning", "error"];

export function Log({ snapshot }) {
  const [lines, setLines] = useState([]);
  const [level, setLevel] = useState("info");
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    const after = lines.at(-1)?.number ?? 0;
    // A daemon that was started again counts anew.
    if (snapshot.log_number < after) return setLines([]);
    if (snapshot.log_number === after) return;
    request("GET", `/api/v1/logs?after=${after}&limit=${LINES}`).then(
      (answer) => {
        setLines((now) => [...now, ...answer.lines.filter((it) => it.number > (now.at(-1)?.number ?? 0))].slice(-LINES));
        setProblem(null);
      },
      (error) => setProblem(error.message),
    );
  }, [snapshot.log_number, lines.length === 0]);
  const shown = lines.filter((it) => LEVELS.indexOf(it.level) >= LEVELS.indexOf(level));
  return html`<section class="panel"><h2>Log</h2>
    <label class="filter">From level
      <select value=${level} onChange=${(event) => setLevel(event.target.value)}>
        ${LEVELS.map((it) => html`<option>${it}</option>`)}
      </select>
    </label>
    ${problem && html`<p class="lost" role="alert">${problem}</p>`}
    ${shown.length
      ? html`<ol class="log" tabindex="0" aria-label="Log lines">
          ${shown.map((it) => html`<li key=${it.number} class=${it.level}>${it.text}</li>`)}
        </ol>`
      : html`<p class="empty">No line of this level yet.</p>`}
  </section>`;
}
