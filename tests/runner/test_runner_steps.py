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


# ── what a method meets ─────────────────────────────────────────────────────────────────────────────────────


async def test_the_environment_is_that_of_a_shell_step(site: Site) -> None:
    code = """
    @method
    def go(self, context: PlainContext) -> None:
        import json
        print("ENV " + json.dumps(dict(os.environ)))
        print("C " + os.popen("env | sort | tr '\\\\n' ' '").read())
        print("CWD", os.getcwd(), os.listdir())
        print("STDIN", sys.stdin.read() == "")
        print("LEAD", os.getsid(0) == os.getpid() == os.getpgid(0))
        print("FDS", sorted(int(each) for each in os.listdir("/proc/self/fd"))[:3])
        os.environ["X"] = "1"
    """
    finished, lines = await site.run(
        code, environment={"FROM_ORCHESTRATOR": "yes", "SWAMP_TOKEN": "no"}, bindings={"B": "b"}
    )
    assert finished.error is None
    found = json.loads(lines.text.partition("ENV ")[2].partition("\n")[0])
    assert found["FROM_ORCHESTRATOR"] == "yes"
    assert found["B"] == "b"
    assert found["SWAMP_DISPATCH"] == finished.dispatch
    assert (found["SWAMP_FENCE"], found["SWAMP_ATTEMPT_KEY"]) == ("7", "run/step/2")
    assert "SWAMP_TOKEN" not in found
    assert not [name for name in found if name.startswith("PYTHON")]
    assert "credential-of-the-step" not in lines.text
    assert f"SWAMP_DISPATCH={finished.dispatch} " in lines.text.partition("\nC ")[2]
    assert f"CWD {found['PWD']} []" in lines.text
    assert "STDIN True" in lines.text
    assert "LEAD True" in lines.text


async def test_two_steps_share_nothing(site: Site) -> None:
    code = """
    count = 0

    @method
    def go(self, context: PlainContext) -> None:
        type(self).count += 1
        sys.path.append("x")
        print("COUNT", type(self).count, len([each for each in sys.path if each == "x"]), os.getcwd())
    """
    bundle = site.extension(code)
    seen = set()
    for _ in range(2):
        finished, lines = await site.execute(site.dispatch(bundle))
        assert finished.error is None
        assert "COUNT 1 1" in lines.text
        seen.add(lines.text)
    assert site.folders.released


async def test_facts_of_the_step(site: Site) -> None:
    code = """
    @method
    async def go(self, context: Context) -> None:
        m, p = context.model, context.place
        print(m.name, m.id, m.type, m.version, dict(m.tags), p.run, p.workflow, p.job, p.step)
        print(context.fence, context.attempt, context.attempt_key, context.cancelled)
        print(context.extension_file("data/words.txt").read_text())
        for wrong in ("../x", "/etc/passwd", "missing"):
            try:
                context.extension_file(wrong)
            except (ValueError, FileNotFoundError) as error:
                print(error)
    """
    bundle = site.extension(code)
    (site.folders.found[bundle] / "data").mkdir()
    (site.folders.found[bundle] / "data" / "words.txt").write_text("some words")
    finished, lines = await site.execute(site.dispatch(bundle))
    assert finished.error is None
    assert lines.text.split("\n") == [
        "mine m-1 @test/ext 3 {'env': 'test'} run-1 demo build compile",
        "7 2 run/step/2 False",
        "some words",
        "extension_file: '../x' leads out of the extension",
        "extension_file: '/etc/passwd' leads out of the extension",
        "extension_file: the extension has no file 'missing'",
    ]


READS = """
@method
async def go(self, context: Context) -> None:
    print(await context.read_resource("none"))
    first = await context.read_resource("old")
    print(first.version, first.into(Thing), first.spec, dict(first.tags))
    print((await context.read_resource("old", version=1)).json())
    print((await context.read_resource("far", model="other")).json())
    print([each["version"] for each in await context.versions("old")])
    print(await context.query("specName == 'thing'", limit=1))
    print(await context.read_model("mine"))
    print(await context.read_output())
    print(await context.delete_resource("old"), await context.delete_resource("old"), await context.read_resource("old"))
    large = await context.read_file("large")
    print(large.path.stat().st_size, large.record.name)
    print(await context.secret("ops", "token") == "to" + "p-secret")
    print("the value is", await context.secret("ops", "token"))
    await context.put_secret("ops", "new", "ano" + "ther")
    print("ano" + "ther")
    run = await context.run_model("web", "deploy", {"x": 1})
    print(run.status)
    try:
        await context.run_model("web", "break")
    except RunFailed as error:
        print("failed:", error)
    for wrong in (context.read_resource("x", model="stranger"), context.secret("ops", "nothing")):
        try:
            await wrong
        except CallFailed as error:
            print(type(error).__name__, error.code.value)
"""


async def _reads(site: Site, code: str) -> list[str]:
    access = site.access
    access.reads = frozenset({"other"})
    access.secrets["ops/token"] = "top-secret"
    access.queries = {"specName == 'thing'": ["a", "b"]}
    access.definitions = {"mine": {"name": "mine"}}
    access.runs = lambda model, method, inputs: (
        {"status": "succeeded"} if method == "deploy" else {"status": "failed", "error": "it broke"}
    )
    access.put("old", {"name": "x", "size": 1}, spec="thing", tags={"a": "b"})
    access.put("old", {"name": "x", "size": 2}, spec="thing")
    access.put("far", {"far": True}, model="other")
    access.put("large", b"x" * 5_000_000)
    finished, lines = await site.run(code)
    assert finished.error is None, lines.text
    assert access.secrets["ops/new"] == "another"
    return lines.text.split("\n")


EXPECTED = [
    "None",
    "2 Thing(name='x', size=2) thing {}",
    "{'name': 'x', 'size': 1}",
    "{'far': True}",
    "[1, 2]",
    "['a']",
    "{'name': 'mine'}",
    "None",
    "True False None",
    "5000000 large",
    "True",
    "the value is ***",
    "***",
    "succeeded",
]


async def test_everything_a_method_may_ask_async(site: Site) -> None:
    found = await _reads(site, READS)
    assert found[: len(EXPECTED)] == EXPECTED
    assert found[-3].startswith("failed: web → break: it broke (run ")
    assert found[-2:] == ["Forbidden forbidden", "NotFound not_found"]


async def test_everything_a_method_may_ask_plain(site: Site) -> None:
    code = READS.replace("async def", "def").replace("await ", "").replace(": Context", ": PlainContext")
    code = code.replace(
        'context.read_resource("x", model="stranger")', 'lambda: context.read_resource("x", model="stranger")'
    )
    code = code.replace(', context.secret("ops", "nothing"))', ', lambda: context.secret("ops", "nothing"))')
    code = code.replace("        wrong\n", "        wrong()\n").replace(
        "\n            wrong\n", "\n            wrong()\n"
    )
    found = await _reads(site, code)
    assert found[: len(EXPECTED)] == EXPECTED
    assert found[-2:] == ["Forbidden forbidden", "NotFound not_found"]


async def test_files_are_stored_when_their_block_is_left(site: Site) -> None:
    code = """
    @method
    async def go(self, context: Context) -> None:
        async with context.open_file(self.paper, "notes", tags={"a": "b"}) as file:
            await file.write_line("first")
            await file.write("second")
            print(file.path.read_text())
        print(file.record.name, file.record.version, file.record.size)
        async with context.open_file(self.blob) as file:
            for _ in range(50):
                await file.write(b"x" * 100_000)
        print(file.record.size)
        async with context.open_file("paper", "tool") as file:
            file.path.write_text("by a tool")
        try:
            async with context.open_file("paper", "gone") as file:
                await file.write("never")
                raise KeyError("out")
        except KeyError:
            pass
        print(os.listdir(".swamp"))
    """
    finished, lines = await site.run(code)
    assert finished.error is None, lines.text
    assert [(each.name, each.kind, len(each.content)) for each in site.access.records] == [
        ("notes", "file", 12),
        ("blob", "file", 5_000_000),
        ("tool", "file", 9),
    ]
    assert lines.text.split("\n") == ["first", "second", "notes 1 12", "5000000", "[]"]


async def test_many_writes_at_once_share_commits(site: Site) -> None:
    site.access.latency_s = 0.01
    code = """
    @method
    async def go(self, context: Context) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(context.write_resource, self.thing, Thing("x", number), f"n-{number}")
        found = await context.write_resources(Resources(self.thing, f"m-{n}", Thing("y", n)) for n in range(2000))
        print(len(found), found[-1].name)
    """
    finished, lines = await site.run(code)
    assert finished.error is None, lines.text
    assert lines.text == "2000 m-1999"
    assert len(site.access.records) == 2200
    assert site.access.commits < 20


async def test_one_wrong_record_harms_no_other(site: Site) -> None:
    """The orchestrator's own refusal, in the middle of a commit that several tasks share."""
    from swamp_worker.models.interface import OutputSpec

    site.access.latency_s = 0.01
    strict = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 2}, "size": {"type": "integer"}},
    }
    site.access.outputs = {"thing": OutputSpec("thing", "resource", "application/json", "", strict)}
    code = """
    @method
    async def go(self, context: Context) -> None:
        async def write(name):
            try:
                await context.write_resource(self.thing, Thing(name), name)
            except Invalid as error:
                print("refused:", error)
        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "long", "c", "d"):
                nursery.start_soon(write, name)
    """
    finished, lines = await site.run(code)
    assert finished.error is None, lines.text
    assert lines.text == "refused: long: name must have at most 2 characters"
    assert sorted(each.name for each in site.access.records) == ["a", "b", "c", "d"]


async def test_threads_of_a_plain_method_may_ask(site: Site) -> None:
    code = """
    @method
    def go(self, context: PlainContext) -> None:
        def work(number):
            context.write_resource(self.thing, Thing("x", number), f"n-{number}")
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for each in threads: each.start()
        for each in threads: each.join()
    """
    finished, lines = await site.run(code)
    assert finished.error is None, lines.text
    assert sorted(each.name for each in site.access.records) == [f"n-{n}" for n in range(8)]


# ── checks, follow-ups, reports ─────────────────────────────────────────────────────────────────────────────

STAGES = """
@check
async def first(self, context: Context, arguments: Count) -> None:
    print("checked", arguments.count)
    if arguments.count > 5:
        raise CheckFailed("too many")

@check(applies_to=["other"])
def second(self, context: PlainContext) -> None:
    raise CheckFailed("never asked")

@check
def third(self, context: PlainContext) -> None:
    if os.environ.get("WRITES"):
        context.write_resource(self.thing, Thing("x"))
    if os.environ.get("BREAKS"):
        raise CheckFailed("it breaks")

@method
async def go(self, context: Context, arguments: Count) -> None:
    print("went")
    if arguments.count == 2:
        raise StepFailed("two is not liked")
    if arguments.count < 4:
        context.follow_up(self.go, Count(arguments.count + 2), after_s=0.01)

@method(mutates=False)
def other(self, context: PlainContext) -> None:
    print("other")

@report
async def summary(self, context: Context, findings: Findings) -> Report:
    return Report(f"# {findings.method} {findings.succeeded} {findings.follow_ups}", {"error": findings.error})

@report
def broken(self, context: PlainContext, findings: Findings) -> str:
    raise RuntimeError("no paper")
"""
CHECKS = ("first", "second", "third")


async def test_checks_run_before_and_all_failures_are_said(site: Site) -> None:
    finished, lines = await site.run(STAGES, arguments={"count": 9}, checks=CHECKS, bindings={"BREAKS": "1"})
    assert finished.error == "Pre-flight checks failed: first: too many; third: it breaks"
    assert "went" not in lines.text
    finished, lines = await site.run(STAGES, checks=CHECKS, bindings={"WRITES": "1"})
    assert finished.error is not None
    assert "third: write_resource can not be used in a pre-flight check" in finished.error
    finished, lines = await site.run(STAGES, "other", checks=CHECKS, bindings={"BREAKS": "1"})
    assert (finished.error, lines.text) == (None, "other")


async def test_follow_ups_run_in_the_same_step(site: Site) -> None:
    finished, lines = await site.run(STAGES, arguments={"count": 1}, checks=CHECKS, reports=("summary",))
    assert finished.error is None
    assert lines.text.split("\n") == ["checked 1", "went", "went", "went"]
    report = {each.name: each.content for each in finished.outputs}["report-summary"]
    assert report == b"# go True 2"


async def test_reports_are_made_after_a_failure_and_may_fail_themselves(site: Site) -> None:
    finished, lines = await site.run(STAGES, arguments={"count": 2}, reports=("broken", "summary"))
    assert finished.outcome is Outcome.FAILED
    assert finished.error is not None
    assert finished.error.startswith("two is not liked (ext.py:")
    found = {each.name: each.content for each in finished.outputs}
    assert found["report-summary"] == b"# go False 0"
    assert json.loads(found["report-summary-json"])["error"] == finished.error
    failed = json.loads(found["report-broken-json"])
    assert failed["error"] is True
    assert "RuntimeError: no paper (ext.py:" in failed["message"]
    assert "report-broken" not in found
    assert "swamp: the report broken failed" in lines.text
    assert all(each.kind == "report" and each.tags["type"] == "report" for each in finished.outputs)


async def test_a_report_that_fails_changes_neither_the_method_nor_another_report(site: Site) -> None:
    finished, _ = await site.run(STAGES, arguments={"count": 9}, reports=("broken", "summary"))
    assert (finished.outcome, finished.error) == (Outcome.SUCCEEDED, None)
    found = {each.name: each for each in finished.outputs}
    assert found["report-summary"].content == b"# go True 0"
    assert "reportStatus" not in found["report-summary"].tags
    broken = found["report-broken-json"]
    assert broken.tags["reportStatus"] == "failed"
    assert json.loads(broken.content)["message"].startswith("RuntimeError: no paper (ext.py:")
