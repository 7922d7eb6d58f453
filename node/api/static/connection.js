// How the page speaks to its node: the token of this tab, requests, and streams of server-sent events.
// The token comes from a one-time code in the address (souk open), or from the person; it stays in this tab.

const KEY = "souk.token";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  drop: () => sessionStorage.removeItem(KEY),
};

// Trades the code in "#code=…" for a token; the code works once, so the address may stay in the history.
export async function signIn() {
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  if (!code) return;
  history.replaceState(null, "", "/#/overview");
  token.set((await request("POST", "/ui/session", { code })).token);
}

function headers(body) {
  const fields = { accept: "application/json" };
  if (token.get()) fields.authorization = `Bearer ${token.get()}`;
  if (body !== undefined) fields["content-type"] = "application/json";
  return fields;
}

async function open(method, path, body, signal) {
  const response = await fetch(path, {
    method,
    signal,
    headers: headers(body),
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
  });
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw new Refused(response.status, answer.error?.message ?? `status ${response.status}`);
}

export async function request(method, path, body) {
  const response = await open(method, path, body);
  return response.status === 202 ? null : response.json();
}

// Calls onEvent(data, comment) for every event and comment until the stream ends or the signal aborts it.
// EventSource would do, but it cannot send the token in a header.
export async function follow(method, path, { body, signal, onEvent }) {
  const response = await open(method, path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) tellBlock(block, onEvent);
  }
}

function tellBlock(block, onEvent) {
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("data: ")) data.push(line.slice(6));
    else if (line.startsWith(": souk ")) onEvent(null, JSON.parse(line.slice(7)));
  }
  if (data.length && data[0] !== "[DONE]") onEvent(JSON.parse(data.join("\n")), null);
}
