// The first view: the node in six figures, its speed over ten minutes, a box to try a model, what needs attention.

import { html } from "./preact.js";
import { NONE, bytes, duration, money, p95, perSecond, percent } from "./format.js";
import { JobsTable } from "./tables.js";
import { TryIt } from "./try.js";

const RECENT = 8;

function Card({ name, value, more }) {
  return html`<div class="card"><h2>${name}</h2><p class="figure">${value}</p><p class="more">${more}</p></div>`;
}

function DeviceCard({ device }) {
  const used = device.memory_total_bytes - device.memory_free_bytes;
  const readings = [
    device.utilization_ratio != null && percent(device.utilization_ratio),
    device.temperature_celsius != null && `${Math.round(device.temperature_celsius)} °C`,
    device.power_watts != null && `${Math.round(device.power_watts)} W`,
  ].filter(Boolean);
  return html`<div class="card">
    <h2>${device.name || device.kind}</h2>
    <p class="figure">${bytes(used)}</p>
    <meter min="0" max=${device.memory_total_bytes} value=${used} aria-label="memory used"></meter>
    <p class="more">of ${bytes(device.memory_total_bytes)} in use${readings.length ? ` · ${readings.join(" · ")}` : ""}</p>
  </div>`;
}

function Chart({ rates }) {
  const width = 600;
  const height = 120;
  const top = Math.max(1, ...rates.flatMap((it) => [it.served, it.bought]));
  const end = rates.at(-1)?.at ?? 0;
  const line = (name) =>
    rates.map((it) => `${width - (end - it.at) / 1000},${height - (it[name] / top) * (height - 4) - 2}`).join(" ");
  return html`<section class="panel">
    <h2>Tokens per second, last 10 minutes</h2>
    <p class="more"><span class="key served">served here</span> <span class="key bought">bought</span> · top of the scale ${perSecond(top)}</p>
    <svg viewBox="0 0 ${width} ${height}" preserveAspectRatio="none" role="img" aria-label="tokens per second">
      <polyline class="served" points=${line("served")} />
      <polyline class="bought" points=${line("bought")} />
    </svg>
  </section>`;
}

export function Findings({ findings }) {
  return html`<ul class="findings">
    ${findings.map(
      (it) => html`<li>
        <strong class=${it.blocks ? "bad" : ""}>${it.about === "serve" ? "Serving" : "Buying"}: ${it.blocks ? "stopped" : "note"}.</strong>
        ${" "}${it.message}${it.advice ? html`<br /><span class="more">${it.advice}</span>` : ""}
      </li>`,
    )}
  </ul>`;
}

export function Overview({ snapshot, rates, onJob }) {
  const { status, jobs, findings, models } = snapshot;
  const now = rates.at(-1) ?? { served: 0, bought: 0 };
  const first = p95(jobs.map((job) => job.first_token_ms));
  // That a node only buys was its owner's choice.
  const urgent = findings.filter((it) => it.blocks && it.code !== "role");
  return html`<div class="cards">
      <${Card} name="Throughput" value=${perSecond(now.served)} more="served here; ${perSecond(now.bought)} bought" />
      <${Card} name="Jobs" value="${status.jobs.running} running" more="${status.jobs.waiting} waiting" />
      ${status.devices.map((device) => html`<${DeviceCard} device=${device} />`)}
      <${Card} name="First token, p95" value=${first === null ? NONE : duration(first)} more="of the newest jobs" />
      <${Card} name="Earned" value=${money(status.earned_microcredits)} more="spent ${money(status.spent_microcredits)}" />
    </div>
    ${urgent.length > 0 && html`<section class="panel attention"><h2>Needs attention</h2><${Findings} findings=${urgent} /></section>`}
    <div class="halves"><${Chart} rates=${rates} /><${TryIt} models=${models} /></div>
    <section class="panel">
      <h2>Newest jobs</h2>
      <${JobsTable} jobs=${jobs.slice(0, RECENT)} now=${snapshot.at_ms} onJob=${onJob} />
    </section>`;
}
