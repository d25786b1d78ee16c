"""Chat templates: rendered as published ones expect it; one that misbehaves is stopped, with one sentence."""

from __future__ import annotations

import pytest

from steerling_jax.errors import UserError
from steerling_jax.io.chat_template import ChatTemplate

MESSAGES = [{"role": "user", "content": "A <b> & ½"}, {"role": "assistant", "content": "c"}]


def render(source: str, *, seconds: float = 30.0, add_generation_prompt: bool = True) -> str:
    template = ChatTemplate(source, "model.gguf", {"bos_token": "<s>"})
    return template.render(MESSAGES, add_generation_prompt=add_generation_prompt, seconds=seconds)


def test_what_published_templates_use():
    source = (
        "{{ bos_token }}\n"
        "{%- for message in messages %}\n"
        "    {%- if loop.index0 == 1 %}{% generation %}{{ message.content }}{% endgeneration %}{% break %}{% endif %}\n"
        "    {{- message['role'] + ': ' + message['content'] | trim }}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}|{{ messages | tojson }}{% endif %}"
    )
    text = render(source)
    assert text == (
        '<s>user: A <b> & ½\nc|[{"role": "user", "content": "A <b> & ½"}, {"role": "assistant", "content": "c"}]'
    )
    assert render(source, add_generation_prompt=False) == "<s>user: A <b> & ½\nc"
    assert render("{{ strftime_now('%Y') }}").isdigit()
    assert render("{{ tools }}") == "", "an undefined variable is empty"


def test_a_rejected_conversation_gives_the_templates_reason():
    with pytest.raises(
        UserError, match=r"^The chat template of model.gguf rejects the conversation: Roles alternate\.$"
    ):
        render("{{ raise_exception('Roles alternate.') }}")


LOOP = "{% for i in range(99999) %}"


@pytest.mark.parametrize(
    ("source", "seconds", "reason"),
    [
        (LOOP * 3 + "{% endfor %}" * 3, 1.0, "did not end within 1 s"),
        ("{{ 'a' * 9999999999 }}", 30.0, "failed (MemoryError)"),
        (LOOP + "{{ 'a' * 9999 }}{% endfor %}", 30.0, "failed (ValueError: it writes more than 16777216 characters)"),
        ("{{ ''.__class__.__mro__ }}", 30.0, "failed (SecurityError: "),
        ("{{ messages.append(1) }}", 30.0, "failed (SecurityError: "),
        ("{% include '/etc/passwd' %}", 30.0, "failed (TypeError: "),
        ("{{ messages[0].text.name }}", 30.0, "failed (UndefinedError: "),
        ("{% for %}", 30.0, "failed (TemplateSyntaxError: "),
    ],
)
def test_a_template_that_misbehaves_is_one_sentence(source: str, seconds: float, reason: str):
    with pytest.raises(UserError) as caught:
        render(source, seconds=seconds)
    message = str(caught.value)
    assert message.startswith(f"The chat template of model.gguf {reason}"), message
    assert message.endswith("; correct the template, or give the prompt as plain text.")
    assert "\n" not in message
