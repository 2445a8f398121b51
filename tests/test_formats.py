"""Rows of every format as pieces of text, of which the answers are learned."""

from __future__ import annotations

from typing import Any

import pytest

from retain.formats import FormatError, Piece, Spoken, format_of, spoken

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}


def render(messages: list[dict[str, Any]], opens: bool) -> str:
    """A plain template: u:hi| a:yo|"""
    said = "".join(f"{m['role'][0]}:{m['content']}|" for m in messages)
    return said + "a:" * opens


def pieces(row: dict[str, Any], form: str, learned: Any = "completion", template: Any = render) -> list[tuple]:
    return [(piece.text, piece.learned) for piece in spoken(row, form, "text", learned, template).pieces]


def test_the_columns_tell_the_format() -> None:
    assert format_of(["id", "messages"], None, "text") == "messages"
    assert format_of(["conversations"], None, "text") == "sharegpt"
    assert format_of(["completion", "prompt"], None, "text") == "prompt"
    assert format_of(["instruction", "input", "output"], None, "text") == "alpaca"
    assert format_of(["body"], None, "body") == "text"
    assert format_of(["messages", "text"], "text", "text") == "text"
    with pytest.raises(FormatError, match=r"fit several formats: say `format: messages \| text`"):
        format_of(["messages", "text"], None, "text")
    with pytest.raises(FormatError, match="columns prompt, answer fit no format; known: messages: messages; "):
        format_of(["prompt", "answer"], None, "text")
    with pytest.raises(FormatError, match="no column 'output', which format 'alpaca' needs; columns: instruction"):
        format_of(["instruction"], "alpaca", "text")


def test_texts_are_learned_whole() -> None:
    assert spoken({"text": "abc"}, "text", "text", "completion", None) == Spoken([Piece("abc", True)], None, False)


def test_of_a_prompt_the_completion_is_learned() -> None:
    row = {"prompt": "2+2=", "completion": "4"}
    assert spoken(row, "prompt", "text", "completion", render) == Spoken(
        [Piece("2+2=", False), Piece("4", True)], "4", False
    )
    assert pieces(row, "prompt", "all") == [("2+2=", True), ("4", True)]


def test_prompts_of_messages() -> None:
    row = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}
    assert pieces(row, "prompt") == [("u:hi|a:yo|u:hi|a:", False), ("yo|", True)]


def test_every_answer_of_a_conversation_is_learned_or_the_last() -> None:
    row = {"messages": [{"role": "system", "content": "be", "name": None}, USER, ANSWER, USER, ANSWER]}
    opened, again = "s:be|u:hi|a:", "u:hi|a:"
    assert pieces(row, "messages") == [(opened, False), ("yo|", True), (again, False), ("yo|", True)]
    assert pieces(row, "messages", "last") == [(f"{opened}yo|{again}", False), ("yo|", True)]
    assert pieces(row, "messages", "all") == [(opened, True), ("yo|", True), (again, True), ("yo|", True)]
    assert spoken(row, "messages", "text", "completion", render).answer == "yo"


def test_sharegpt_is_a_conversation() -> None:
    row = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}
    assert pieces(row, "sharegpt") == pieces({"messages": [USER, ANSWER]}, "messages")


def test_alpaca_with_and_without_a_template() -> None:
    row = {"instruction": "Add", "input": "2 2", "output": "4", "system": None}
    assert pieces(row, "alpaca") == [("u:Add\n\n2 2|a:", False), ("4|", True)]
    assert pieces(row, "alpaca", template=None) == [
        ("### Instruction:\nAdd\n\n### Input:\n2 2\n\n### Response:\n", False),
        ("4", True),
    ]
    assert pieces(row | {"input": ""}, "alpaca")[0] == ("u:Add|a:", False)


def test_a_template_that_rewrites_earlier_answers_is_refused_unless_the_last_alone_is_learned() -> None:
    def thinking(messages: list[dict[str, Any]], opens: bool) -> str:
        shown = [m | {"content": f"(){m['content']}"} if m is messages[-1] and m == ANSWER else m for m in messages]
        return render(shown, opens)

    row = {"messages": [USER, ANSWER, USER, dict(ANSWER)]}
    with pytest.raises(FormatError, match=r"`language.loss: last` learns the last answer alone"):
        pieces(row, "messages", "completion", thinking)
    assert pieces(row, "messages", "last", thinking)[-1] == ("()yo|", True)
    with pytest.raises(FormatError, match="does not begin an answer as its generation prompt does"):
        pieces({"messages": [USER, ANSWER]}, "messages", "completion", lambda m, o: render(m, False) + "bot:" * o)


@pytest.mark.parametrize(
    ("row", "form", "complaint"),
    [
        ({"messages": [USER]}, "messages", "the last message is not the assistant's"),
        ({"messages": []}, "messages", "column 'messages' holds no messages"),
        ({"messages": [{"role": "user"}]}, "messages", "a message needs `role` and `content`, both text"),
        ({"messages": [USER | {"content": [{"type": "image"}]}]}, "messages", "both text; got"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "sharegpt", r"a turn needs `from` \(human, user, gpt"),
        ({"conversations": None}, "sharegpt", "holds no turns"),
        ({"prompt": "a", "completion": None}, "prompt", "column 'completion' holds None, not text"),
        ({"text": 3}, "text", "column 'text' holds 3, not text"),
    ],
)
def test_rows_that_are_not_what_they_should_be(row: dict[str, Any], form: str, complaint: str) -> None:
    with pytest.raises(FormatError, match=complaint):
        pieces(row, form)


def test_messages_without_a_template() -> None:
    with pytest.raises(FormatError, match="messages need a chat template, and this tokenizer has none"):
        pieces({"messages": [USER, ANSWER]}, "messages", template=None)
