"""Verification of token secrets: one argon2 on every path, and a memory that replaces argon2 only."""

import threading

import attrs
import pytest

from swamp_orch.core.tokens import Challenge
from swamp_orch.tokens.verification import Verifier, new_secret
from swamp_proto.errors import Broken
from swamp_proto.ids import MintId


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return Verifier()


def asked(verifier: Verifier, secret: str, mint: str = "m1") -> Challenge:
    return Challenge(MintId(mint), verifier.hash(secret))


def test_the_right_secret_matches_and_any_other_does_not(verifier: Verifier) -> None:
    secret = new_secret()
    question = asked(verifier, secret)
    assert verifier.verify(question, secret)
    assert not verifier.verify(question, new_secret())
    assert not verifier.verify(Challenge(None, None), secret)


def test_every_path_costs_one_verification() -> None:
    verifier, secret = Verifier(), new_secret()
    question = asked(verifier, secret)
    for path, presented in ((question, secret), (question, "wrong"), (Challenge(None, None), secret)):
        before = verifier.spent
        verifier.verify(path, presented)
        assert verifier.spent == before + 1


def test_a_wrong_secret_is_never_remembered() -> None:
    verifier, secret = Verifier(), new_secret()
    question = asked(verifier, secret)
    for _ in range(3):
        assert not verifier.verify(question, "wrong")
    assert verifier.spent == 3


def test_a_verified_secret_is_remembered_for_its_mint_only() -> None:
    verifier, secret = Verifier(), new_secret()
    question = asked(verifier, secret)
    assert verifier.verify(question, secret)
    assert verifier.knows(question, secret)
    assert verifier.verify(question, secret)
    assert verifier.spent == 1
    assert not verifier.knows(attrs.evolve(question, mint_id=MintId("m2")), secret)
    assert not verifier.knows(attrs.evolve(question, secret_hash=verifier.hash(secret)), secret)
    assert not Verifier().knows(question, secret)


def test_the_memory_is_bounded() -> None:
    verifier = Verifier(remembered_max=2)
    questions = [(asked(verifier, secret), secret) for secret in ("a", "b", "c")]
    for question, secret in questions:
        assert verifier.verify(question, secret)
    assert [verifier.knows(question, secret) for question, secret in questions] == [False, True, True]


def test_a_stored_hash_that_is_none_is_a_broken_store(verifier: Verifier) -> None:
    with pytest.raises(Broken, match="not readable"):
        verifier.verify(Challenge(MintId("m"), "no hash"), "secret")


def test_nothing_shows_a_hash_or_a_secret(verifier: Verifier) -> None:
    secret = new_secret()
    question = asked(verifier, secret)
    verifier.verify(question, secret)
    assert "argon2" not in repr(question)
    assert secret not in repr(vars(verifier))


def test_threads_may_verify_at_once() -> None:
    verifier = Verifier()
    secrets = [new_secret() for _ in range(4)]
    questions = [asked(verifier, secret) for secret in secrets]
    answers: list[bool] = []

    def work(number: int) -> None:
        answers.append(verifier.verify(questions[number], secrets[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [True] * 4
    assert verifier.spent == 4


def test_secrets_have_256_bits() -> None:
    assert len(new_secret()) == 64
    assert int(new_secret(), 16) >= 0
    assert new_secret() != new_secret()
