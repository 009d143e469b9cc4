"""Conversations as Transformers writes them by chat templates: `tests/fixtures/chat.json`.

    python tests/oracle/chat.py

The templates are written here, in the manner of families that are in use: what they have in common with those is the
Jinja that they need.
"""

import json
from pathlib import Path

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

FIXTURE = Path(__file__).parent.parent / "fixtures" / "chat.json"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

TEMPLATES = {
    # A default system message, a slice, marks of what the assistant says.
    "chatml": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are of help.<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n'}}{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    # Turns that must alternate, methods of strings, a namespace.
    "inst": """{{ bos_token }}
{%- set ns = namespace(system='') %}
{%- if messages[0].role == 'system' %}
    {%- set ns.system = messages[0].content.strip() %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{%- for message in turns %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant take turns') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {%- if loop.first and ns.system %}
            {{- '[INST] ' ~ ns.system ~ '\\n\\n' ~ message.content.strip() ~ ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' ~ message.content.strip() ~ ' [/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' ~ message.content.strip() ~ eos_token }}
    {%- endif %}
{%- endfor %}
""",
    # Headers, filters, optional variables, what is not given.
    "headers": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|header|>system<|end|>\\n\\n" }}
{{- "Today: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot|>" }}
{%- if tools is not none and tools %}
    {{- tools | tojson(indent=4) }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant'] %}{% continue %}{% endif %}
    {{- '<|header|>' + message['role'] + '<|end|>\\n\\n' + (message['content'] | trim) + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header|>assistant<|end|>\\n\\n' }}
{%- endif %}
""",
    # Indented blocks, macros, JSON, replacements.
    "plain": """{% macro line(role, text) %}
{{ role | upper }}: {{ text | replace('\\n', ' / ') }}
{% endmacro %}
{% for message in messages %}
    {% if message.name is defined %}
{{ line(message.role ~ '(' ~ message.name ~ ')', message.content) }}
    {% else %}
{{ line(message.role, message.content) }}
    {% endif %}
    {% if message.data is defined and message.role == 'user' %}
{{ message.data | tojson }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}""",
}

WORDS = ["What is a norm?", "Grüße — 你好", "  blanks around  ", "two\nlines", 'quotes "and" <tags> & \'more\'', "{{ braces }}", "1.5e3", "a"]


def conversations():
    found = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        [{"role": "assistant", "content": "I begin."}],
        [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}, {"role": "assistant", "content": "three"}],
        [{"role": "tool", "content": "3", "name": "sum"}, {"role": "assistant", "content": "It is 3."}],
    ]
    for number in range(252):
        word = lambda at: WORDS[(number * 7 + at * 3) % len(WORDS)]
        turns = []
        if number % 3 == 0:
            turns.append({"role": "system", "content": "Be " + word(9)})
        for turn in range(1 + number % 4):
            user = {"role": "user", "content": word(turn)}
            if number % 5 == 0:
                user["name"] = "ann"
            if number % 7 == 0:
                user["data"] = {"b": [1, 2.5, None, True], "a": {"text": word(turn)}}
            turns.append(user)
            if turn < number % 4 or number % 2 == 0:
                turns.append({"role": "assistant", "content": f"{number}: {word(turn + 1)}"})
        found.append(turns)
    return found


def write(template, messages):
    def one(opened):
        rendered, _ = render_jinja_template(
            conversations=[messages], chat_template=template, add_generation_prompt=opened, **TOKENS
        )
        return rendered[0]

    try:
        return [one(True), one(False)]
    except jinja2.exceptions.TemplateError:
        return None


def main():
    chats = conversations()
    golden = {
        "templates": TEMPLATES,
        "tokens": TOKENS,
        "conversations": chats,
        "written": {name: [write(text, chat) for chat in chats] for name, text in TEMPLATES.items()},
    }
    FIXTURE.write_text(json.dumps(golden, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, written in golden["written"].items():
        print(name, sum(one is not None for one in written), "written of", len(written))


if __name__ == "__main__":
    main()
