"""Seeds that once failed, each with its story. They run in every check, before the others.

A seed means the same world only as long as nothing that draws from its streams changes; the story says what to
look for, and a rule or a test holds it beside the seed where there is one.
"""

STORIES: dict[int, str] = {
    9: "A cancel that a return set off was said before the enrollment was answered: an unlawful frame, and the "
    "orchestrator fell over it. What is said early now waits behind the answer (gateway/link.py).",
    4: "The disk was full when a completion came. Its lease went back to running and its holder waited for an "
    "answer for ever: nobody told it to report again (engine/flights.py, `_ask_again`).",
    55: "A result that came while the end of its lease was being recorded was refused at once; a crash before "
    "that was durable forgot both (core/leases.py, `_finish`).",
    172: "A worker came back before its lease was found again after a restart, and a running step was dropped. "
    "Nobody is let in before that now (gateway/enrollment.py, `opened`).",
    790: "A verdict of an earlier link, which had not waited for it, answered the next enrollment before that was "
    "durable (engine/flights.py, `worker_joined`; core/leases.py, `_adopt`).",
    540: "A stuck leftover outlived its worker process: slots count what still runs, not what can not be reaped.",
    3: "What was left of a finished step went away, and the orchestrator was never told: its slot was gone for "
    "as long as the link lived (shell/daemon.py, `_watch_stuck`).",
    1783: "A worker that had stood still past its give-up instant began a dispatch that lay in its socket, while "
    "the step ran elsewhere already (shell/daemon.py: a late worker refuses).",
    1879: "A cancel and the end of a run were recorded at once; one lost, and the run ended as a fault of swamp "
    "(engine/runs.py, `_recording`).",
    5211: "A worker's record changed during the start: the worker was then unknown to the pool, and the run whose "
    "lease it held ended as a fault (engine/recovery.py, `_forget_links`).",
    200590: "The disk was full as a lease expired, and its step was cancelled meanwhile: the step ended, the orchestrator "
    "died, and the lease was active for ever (core/leases.py, `_cancel`: an end is durable before it is said).",
    202818: "A worker came back while the end of its lease was not durable; it was told to drop its result, and after a "
    "crash the lease was active again and the result gone (core/leases.py, `_returned`: a drop waits, too).",
    205296: "What was left of a finished step went away while the answer to its report was on its way: nobody told the "
    "orchestrator (shell/daemon.py, `_on_finish_reply`).",
    1009350: "The first of a group was placed, the second moved to a queue of its own, and a step behind them waited for ever "
    "although a slot was free (core/scheduler.py, `take_placements`).",
    85: "A run that began during the start of the orchestrator was taken over by that very start "
    "(engine/owners.py: a living owner is this process, too).",
}
