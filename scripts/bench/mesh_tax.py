"""What the mesh costs in speed: tokens per second through a peer, beside the provider itself and the engine alone.

The arms are interleaved and change their order from round to round; every answer has to be the same text with the
same number of tokens before a figure is believed.
"""

from collections.abc import Callable, Mapping
from typing import Final

from scripts.bench.in_process import load_engine
from scripts.bench.local_net import FAST, LOCAL, LocalNet, Question, TimedAnswer, add_net_option, ask, local_net
from scripts.bench.measure import Report, parser_of

QUESTION: Final = Question(
    text="Describe a lighthouse keeper's day from dawn to midnight, hour by hour, in great detail.",
    tokens_max=128,
    temperature=0.8,
    seed=7,
)
PEER, PROVIDER, ENGINE = "through a peer", "provider's own API", "engine in process"

Arms = Mapping[str, Callable[[], TimedAnswer]]


def main() -> None:
    parser = parser_of(__doc__, rounds=7)
    add_net_option(parser)
    options = parser.parse_args()
    report = Report("mesh tax")
    with local_net(options.dir) as net:
        measure(report, net, options.rounds)
    report.print(as_json=options.json)


def measure(report: Report, net: LocalNet, rounds: int) -> None:
    engine = load_engine(net.provider_config(), net.model)
    arms: Arms = {
        PEER: lambda: ask(net.buyer, net.model, QUESTION, FAST),
        PROVIDER: lambda: ask(net.provider, net.model, QUESTION, LOCAL),
        ENGINE: lambda: engine.ask(QUESTION),
    }
    # The first round warms up, and is the one that proves that the arms do the same work.
    first = run_round(arms, 0)
    answers = [run_round(arms, number) for number in range(1, rounds + 1)]
    for answer in (first, *answers):
        require_same(answer)
    report.settings |= {"model": net.model, "dtype": engine.dtype, "tokens": first[PEER].tokens}
    for name in arms:
        report.add(f"decode, {name}", "tokens/s", [it[name].decode_tokens_per_s for it in answers])
    for name in arms:
        report.add(f"whole answer, {name}", "tokens/s", [it[name].tokens_per_s for it in answers])
    for base in (ENGINE, PROVIDER):
        decode = [it[PEER].decode_tokens_per_s / it[base].decode_tokens_per_s for it in answers]
        whole = [it[PEER].tokens_per_s / it[base].tokens_per_s for it in answers]
        report.add(f"decode, peer ÷ {base}", "ratio", decode)
        report.add(f"whole answer, peer ÷ {base}", "ratio", whole)


def run_round(arms: Arms, number: int) -> dict[str, TimedAnswer]:
    """Run every arm once, each round beginning with another one: drift then hits all of them."""
    names = list(arms)
    shift = number % len(names)
    return {name: arms[name]() for name in names[shift:] + names[:shift]}


def require_same(answers: Mapping[str, TimedAnswer]) -> None:
    (reference, *others) = answers.items()
    for name, answer in others:
        if (answer.text, answer.tokens) != (reference[1].text, reference[1].tokens):
            raise SystemExit(
                f"the arms do not do the same work: {reference[0]} gave {reference[1].tokens} tokens, "
                f"{name} {answer.tokens}, texts {'equal' if answer.text == reference[1].text else 'differ'}"
            )


if __name__ == "__main__":
    main()
