// The page: signing in, the live connection, tabs. What the tabs show is in overview.js, tables.js and drawer.js.

import { html, render, useEffect, useRef, useState } from "./preact.js";
import { Refused, follow, request, signIn, token } from "./connection.js";
import { duration, shortId } from "./format.js";
import { JobDrawer } from "./drawer.js";
import { Overview } from "./overview.js";
import { Earnings, Jobs, Models, Network, Settings, Why } from "./tables.js";
import { Log } from "./log.js";
import { noteRates } from "./rates.js";

const RETRY_MS = 2000;
const TABS = {
  overview: ["Overview", Overview],
  jobs: ["Jobs", Jobs],
  network: ["Network", Network],
  models: ["Models", Models],
  earnings: ["Earnings", Earnings],
  why: ["Why", Why],
  log: ["Log", Log],
  settings: ["Settings", Settings],
};

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const shown = () =>
  new Promise((done) => {
    if (!document.hidden) return done();
    document.addEventListener("visibilitychange", done, { once: true });
  });

// Follows the node's snapshots for as long as the page can be seen: a hidden tab costs the node nothing.
function useLive(onSignedOut) {
  const [live, setLive] = useState({ snapshot: null, rates: [], lost: null });
  const last = useRef({ rates: [], tokens: new Map() });
  useEffect(() => {
    let over = false;
    let cut = () => {};
    const onVisibility = () => document.hidden && cut();
    const onEvent = (snapshot) => {
      if (!snapshot) return;
      last.current = noteRates(last.current, snapshot);
      setLive({ snapshot, rates: last.current.rates, lost: null });
    };
    const run = async () => {
      while (!over) {
        await shown();
        const controller = new AbortController();
        cut = () => controller.abort();
        let lost = "the node ended the connection";
        try {
          await follow("GET", "/api/v1/events", { signal: controller.signal, onEvent });
        } catch (error) {
          if (error instanceof Refused && error.status === 401) return onSignedOut();
          lost = error instanceof Refused ? error.message : "the node does not answer";
        }
        if (over || document.hidden) continue;
        setLive((now) => ({ ...now, lost }));
        await sleep(RETRY_MS);
      }
    };
    document.addEventListener("visibilitychange", onVisibility);
    run();
    return () => {
      over = true;
      cut();
      document.removeEventListener("visibilitychange", onVisibility);
    };
  }, []);
  return live;
}

function useTab() {
  const read = () => {
    const name = location.hash.replace(/^#\//, "");
    return Object.hasOwn(TABS, name) ? name : "overview";
  };
  const [tab, setTab] = useState(read);
  useEffect(() => {
    const onChange = () => setTab(read());
    addEventListener("hashchange", onChange);
    return () => removeEventListener("hashchange", onChange);
  }, []);
  return tab;
}

function Header({ status }) {
  const [problem, setProblem] = useState(null);
  if (!status) return html`<header class="top"><h1>souk</h1></header>`;
  const ask = (path) => () => request("POST", path, {}).then(() => setProblem(null), (error) => setProblem(error.message));
  const stop = () => confirm("Stop this node? Running jobs are cancelled.") && ask("/api/v1/shutdown")();
  const gate = status.gate;
  return html`<header class="top">
    <h1>${status.name}</h1>
    <span class=${status.ready ? "state good" : "state bad"}>${status.ready ? "ready" : "not ready"}</span>
    <span title=${status.peer_id}>${shortId(status.peer_id)}</span>
    <span>souk ${status.version}</span>
    <span>up ${duration(status.uptime_s * 1000)}</span>
    <span>${status.peers_connected} ${status.peers_connected === 1 ? "peer" : "peers"}</span>
    ${gate && !gate.open && html`<span class="state">takes no jobs of peers: ${gate.reasons.join("; ") || "drained by hand"}</span>`}
    <span class="actions">
      ${problem && html`<span class="bad" role="alert">${problem}</span>`}
      ${status.role === "worker" &&
      (gate?.drained
        ? html`<button onClick=${ask("/api/v1/resume")}>Resume</button>`
        : html`<button onClick=${ask("/api/v1/drain")}>Drain</button>`)}
      <button onClick=${stop}>Stop</button>
    </span>
  </header>`;
}

function Page({ onSignedOut }) {
  const live = useLive(onSignedOut);
  const tab = useTab();
  const [job, setJob] = useState(null);
  const [, View] = TABS[tab];
  return html`<${Header} status=${live.snapshot?.status} />
    ${live.lost && html`<p class="lost" role="alert">Not live: ${live.lost}. Trying again every 2 s.</p>`}
    <nav aria-label="Views">
      ${Object.entries(TABS).map(
        ([name, [label]]) =>
          html`<a href="#/${name}" aria-current=${name === tab ? "page" : undefined}>${label}</a>`,
      )}
    </nav>
    <main>
      ${live.snapshot
        ? html`<${View} snapshot=${live.snapshot} rates=${live.rates} onJob=${setJob} />`
        : html`<p class="empty">Waiting for the node…</p>`}
    </main>
    ${job && html`<${JobDrawer} id=${job} snapshot=${live.snapshot} onClose=${() => setJob(null)} />`}`;
}

function SignIn({ problem, onSignedIn }) {
  const submit = (event) => {
    event.preventDefault();
    token.set(new FormData(event.target).get("token").trim());
    onSignedIn();
  };
  return html`<main class="sign-in">
    <h1>souk</h1>
    ${problem && html`<p class="lost" role="alert">${problem}</p>`}
    <p>Open this page with <code>souk open</code>, or give the token of this node (<code>souk env</code> prints it).</p>
    <form onSubmit=${submit}>
      <label>Token <input name="token" type="password" autocomplete="off" required /></label>
      <button>Sign in</button>
    </form>
  </main>`;
}

function App({ problem }) {
  const [signedIn, setSignedIn] = useState(Boolean(token.get()));
  const [why, setWhy] = useState(problem);
  const onSignedOut = () => {
    token.drop();
    setWhy("The node does not know this token (any more).");
    setSignedIn(false);
  };
  return signedIn
    ? html`<${Page} onSignedOut=${onSignedOut} />`
    : html`<${SignIn} problem=${why} onSignedIn=${() => setSignedIn(true)} />`;
}

const root = document.getElementById("app");
const problem = await signIn().then(
  () => null,
  (error) => error.message,
);
root.textContent = "";
render(html`<${App} problem=${problem} />`, root);
