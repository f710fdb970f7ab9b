"""Methods in real runner processes: what they do, what they may, and what happens when they go wrong."""

import json

from conftest import Site

from swamp_proto.messages.dispatch import Outcome, Stream

ASYNC = """
@method(returns=thing)
async def go(self, context: Context, arguments: Count) -> Thing:
    for number in range(arguments.count):
        await context.write_resource(self.thing, Thing("a", number), f"n-{number}", tags={"n": str(number)})
    print("printed")
    print("to stderr", file=sys.stderr)
    context.log("logged", number=1, text="two words")
    return Thing("returned")
"""


async def test_an_async_method_writes_prints_and_returns(site: Site) -> None:
    finished, lines = await site.run(ASYNC, arguments={"count": 2})
    assert (finished.outcome, finished.error) == (Outcome.SUCCEEDED, None)
    assert [(each.name, each.version, each.json()) for each in site.access.records] == [
        ("n-0", 1, {"name": "a", "size": 0}),
        ("n-1", 1, {"name": "a", "size": 1}),
    ]
    assert sorted((line.stream, line.text) for line in lines.lines) == [
        (Stream.STDOUT, 'logged number=1 text="two words"'),
        (Stream.STDOUT, "printed"),
        (Stream.STDERR, "to stderr"),
    ]
    (output,) = finished.outputs
    assert (output.spec, output.name, output.kind) == ("thing", "thing", "resource")
    assert json.loads(output.content) == {"name": "returned", "size": 0}


async def test_a_plain_method_blocks_and_does_the_same(site: Site) -> None:
    code = ASYNC.replace("async def", "def").replace("await ", "").replace(": Context", ": PlainContext")
    finished, lines = await site.run(code, arguments={"count": 2})
    assert (finished.outcome, finished.error) == (Outcome.SUCCEEDED, None)
    assert [each.name for each in site.access.records] == ["n-0", "n-1"]
    assert "printed" in lines.text
