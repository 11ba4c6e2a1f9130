#!/usr/bin/env python3
"""Golden values of `text`'s chat templates: crates/text/tests/golden/templates.json.

Templates written for this test in the style of each family (what they do, not their text, is theirs), and what transformers' own
`render_jinja_template` makes of some chats. `tools/checks/templates.py` does the same with the published ones that llama.cpp carries.
"""
import json
import pathlib

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

ROOT = pathlib.Path(__file__).resolve().parents[2]

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a test.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN25 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Test.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- message.content | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN3 = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.first and system_message is defined %}
            {{- " [INST] " + system_message + "\\n\\n" + message["content"] + " [/INST]" }}
        {%- else %}
            {{- " [INST] " + message["content"] + " [/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] + eos_token}}
    {%- endif %}
{%- endfor %}
"""
LINES = """\
{# comments go #}
{% for message in messages %}
  {% if message.role == 'user' %}
    U: {{ message.content | upper }}
  {% elif message.role == 'assistant' %}
    A: {% generation %}{{ message.content | default('-', true) }}{% endgeneration %}
  {% else %}
    {% continue %}
  {% endif %}
{% endfor %}
{{ {'n': messages | length, 'roles': messages | map(attribute='role') | list, 'x': none, 'f': 1.5} | tojson }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(' / ') }}
{{ true }} {{ none }} {{ 7 // 2 }} {{ 'a' ~ 1 }} {{ '%s-%d' | format('x', 3) }} {{ [1, 2, 3][-1] }} {{ 'abc'[1:] }}
"""
TEMPLATES = {"smollm2": SMOLLM2, "qwen2.5": QWEN25, "qwen3": QWEN3, "llama3": LLAMA3, "mistral": MISTRAL, "lines": LINES}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def chat(*said):
    return [{"role": role, "content": content} for role, content in said]


CHATS = [
    chat(("user", "Hello there.")),
    chat(("system", "  Be brief.\n"), ("user", "你好 🦙 \"quoted\" <b>&amp;'s</b>")),
    chat(("user", "one"), ("assistant", "  <think>\nhm\n</think>\n\ntwo "), ("user", "three")),
    chat(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "<think>\nd\n</think>\n\ne")),
    chat(("user", "twice"), ("user", "in a row")),
]


def main():
    cases = []
    for name, template in TEMPLATES.items():
        for messages in CHATS:
            for prompt in (True, False):
                for more in ({}, {"enable_thinking": False}) if name == "qwen3" and prompt else ({},):
                    case = {"template": name, "messages": messages, "add_generation_prompt": prompt, "set": more}
                    try:
                        rendered, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=prompt, **TOKENS, **more)
                        case["text"] = rendered[0]
                    except jinja2.TemplateError as error:
                        case["refused"] = str(error)
                    cases.append(case)
    golden = {
        "script": "tools/golden/templates.py",
        "packages": {"transformers": transformers.__version__, "jinja2": jinja2.__version__},
        "seed": None,
        "tokens": TOKENS,
        "templates": TEMPLATES,
        "cases": cases,
    }
    out = ROOT / "crates" / "text" / "tests" / "golden" / "templates.json"
    out.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
