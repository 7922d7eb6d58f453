"""What the mesh costs before the first token: through a peer by either path, less the provider's own API.

Every round asks one new prompt of every arm, in an order that changes; the overhead is the difference within a
round.
"""

from collections.abc import Mapping
from typing import Final

from scripts.bench.local_net import FAST, LOCAL, QUOTE, LocalNet, Question, add_net_option, ask, local_net
from scripts.bench.measure import Report, parser_of

# Two tokens: the first one is what is timed, and a stream of one would end together with it.
TOKENS: Final = 2
SUBJECTS: Final = ("tide", "storm", "lamp", "harbour", "gull", "fog", "reef", "sail")
WARM_UP_ROUNDS: Final = 2


def main() -> None:
    parser = parser_of(__doc__, rounds=24)
    add_net_option(parser)
    options = parser.parse_args()
    report = Report("first token")
    with local_net(options.dir) as net:
        measure(report, net, options.rounds)
    report.print(as_json=options.json)


def measure(report: Report, net: LocalNet, rounds: int) -> None:
    for number in range(WARM_UP_ROUNDS):
        run_round(net, -1 - number)
    taken = [run_round(net, number) for number in range(rounds)]
    report.settings |= {"model": net.model}
    for name in ("local", "fast", "quote"):
        report.add(f"first token, {name}", "ms", [it[name] for it in taken])
    for name in ("fast", "quote"):
        report.add(f"overhead, {name} path", "ms", [it[name] - it["local"] for it in taken])


def run_round(net: LocalNet, number: int) -> dict[str, float]:
    """Return milliseconds to the first text for each arm."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    question = Question(
        text=f"Tell me, in your own words, what number {number} has to do with a {subject}.",
        tokens_max=TOKENS,
    )
    arms: dict[str, tuple[bool, Mapping[str, object]]] = {
        "local": (True, LOCAL),
        "fast": (False, FAST),
        "quote": (False, QUOTE),
    }
    names = list(arms)
    shift = number % len(names)
    times: dict[str, float] = {}
    for name in names[shift:] + names[:shift]:
        at_provider, souk = arms[name]
        daemon = net.provider if at_provider else net.buyer
        times[name] = 1000 * ask(daemon, net.model, question, souk).first_s
    return times


if __name__ == "__main__":
    main()
