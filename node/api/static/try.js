// A box that asks one model once, over the same path as any OpenAI client.

import { html, useRef, useState } from "./preact.js";
import { follow } from "./connection.js";
import { duration, money, shortId } from "./format.js";

const PHASES = {
  asking: (it) => `asking ${it.peers} ${it.peers === 1 ? "peer" : "peers"}…`,
  quoted: (it) => `${shortId(it.peer)} quoted ${money(it.price_max)} at most…`,
  passed_over: (it) => `${shortId(it.peer)} passed over: ${it.message}`,
  contracted: (it) => `contract with ${shortId(it.peer)}; waiting for the first token…`,
};

export function TryIt({ models }) {
  const [answer, setAnswer] = useState("");
  const [note, setNote] = useState("");
  const [running, setRunning] = useState(null);
  const form = useRef(null);
  const send = async (event) => {
    event.preventDefault();
    const fields = new FormData(form.current);
    const controller = new AbortController();
    setRunning(controller);
    setAnswer("");
    setNote("asking…");
    const onEvent = (chunk, phase) => {
      if (phase) return setNote(PHASES[phase.phase]?.(phase) ?? phase.phase);
      if (chunk.error) throw new Error(chunk.error.message);
      const choice = chunk.choices[0];
      if (choice?.delta?.content) setAnswer((text) => text + choice.delta.content);
      if (chunk.souk) {
        const { cost_microcredits: cost, first_token_ms: first, duration_ms: whole, peer } = chunk.souk;
        setNote(`${shortId(peer)} · first token ${duration(first)} · ${duration(whole)} in all · ${money(cost)}`);
      }
    };
    const messages = [{ role: "user", content: fields.get("prompt") }];
    const body = { model: fields.get("model"), messages, stream: true, max_tokens: 256 };
    try {
      await follow("POST", "/v1/chat/completions", { body, signal: controller.signal, onEvent });
    } catch (error) {
      setNote(controller.signal.aborted ? "stopped: the job was cancelled" : `failed: ${error.message}`);
    }
    setRunning(null);
  };
  return html`<section class="panel">
    <h2>Try it</h2>
    ${models.length === 0
      ? html`<p class="empty">No model yet: none is served here and no peer offers one.</p>`
      : html`<form ref=${form} onSubmit=${send} class="try">
          <label>Model <select name="model">${models.map((it) => html`<option value=${it.name}>${it.name}</option>`)}</select></label>
          <label>Prompt <textarea name="prompt" rows="2" required>Say hello in five words.</textarea></label>
          <div class="actions">
            <button disabled=${running !== null}>Send</button>
            <button type="button" disabled=${running === null} onClick=${() => running?.abort()}>Stop</button>
          </div>
        </form>`}
    <p class="more" role="status">${note}</p>
    <output class="answer" aria-live="polite">${answer}</output>
  </section>`;
}
