//! Chat templates: what they render, how they refuse, and that none costs more than its bounds.

use text::{ChatTemplate, Error, Fault, Message, TokenizerData};

fn data(template: Option<&str>) -> TokenizerData {
    TokenizerData {
        tokens: vec!["<s>".into(), "</s>".into()],
        bos: Some(0),
        eos: Some(1),
        chat_template: template.map(str::to_owned),
        ..TokenizerData::default()
    }
}

fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
    turns
        .iter()
        .map(|&(role, content)| Message { role: role.into(), content: content.into() })
        .collect()
}

fn render(template: &str) -> text::Result<String> {
    let turns = messages(&[("user", "Hello"), ("assistant", "Hi <b>"), ("user", "Bye")]);
    // 2024-07-26 00:00 UTC.
    ChatTemplate::new(&data(Some(template)))?.render(&turns, true, 1_721_952_000)
}

#[track_caller]
fn check(template: &str, expected: &str) {
    assert_eq!(render(template).as_deref(), Ok(expected), "{template}");
}

#[test]
fn a_file_without_a_template_gets_chatml_and_says_so() {
    let template = ChatTemplate::new(&data(None)).unwrap();
    assert!(template.is_fallback());
    let turns = messages(&[("system", "Be brief."), ("user", "Hi")]);
    assert_eq!(
        template.render(&turns, true, 0).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    assert!(template.render(&turns, false, 0).unwrap().ends_with("Hi<|im_end|>\n"));
    assert!(!ChatTemplate::new(&data(Some("x"))).unwrap().is_fallback());
}

#[test]
fn templates_find_what_hugging_face_gives_them() {
    check("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s>Hello</s>");
    check("{{ messages[1]['content'] }}", "Hi <b>");
    check("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024");
    check("{% if not tools %}none{% endif %}{% if tools is none %}!{% endif %}", "none!");
    check("{{ add_generation_prompt }} {{ none }} {{ missing }}", "True None ");
    check(
        "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ m.role }};{% endfor %}",
        "user;user;",
    );
    check("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "user");
}

#[test]
fn blocks_are_trimmed_as_hugging_face_does() {
    check("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc");
    check("{%- for m in messages -%}\n  {{ m.role }}\n{%- endfor %}", "userassistantuser");
}

#[test]
fn the_language_works_through_the_bounds() {
    check("{{ 1 + 2 }}{{ 1.5 + 1 }}{{ 'a' + 'b' }}{{ 'a' ~ 1 ~ none }}", "32.5aba1None");
    check("{% set n = 3 %}{{ 'ab' * n }}{{ 2 * n }}{{ 7 // 2 }}{{ 7 % 2 }}", "ababab631");
    check(
        "{{ (messages[1:] + messages[:1]) | map(attribute='role') | join(',') }}",
        "assistant,user,user",
    );
    check("{{ messages[::-1][0].content }}{{ 'Hello'[1:3] }}{{ 'abc'[-1] }}", "Byeelc");
    check(
        "{{ 1 == 1.0 }}{{ 'a' != 'a' }}{{ 1 < 2 }}{{ 2 <= 1 }}{{ 2 > 1 }}{{ 1 >= 2 }}",
        "TrueFalseTrueFalseTrueFalse",
    );
    check("{{ 'el' in 'Hello' }}{{ 3 not in [1, 2] }}{{ 'role' in messages[0] }}", "TrueTrueTrue");
    check(
        "{% set d = {'b': 1, 'a': [1, 'x\u{e9}', none, true]} %}{{ d | tojson }}{{ d.b }}",
        "{\"a\": [1, \"x\u{e9}\", null, true], \"b\": 1}1",
    );
    check("{{ {'a': 1} | tojson(indent=2) }}", "{\n  \"a\": 1\n}");
    check(
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "3",
    );
    check("{% macro f(m) %}[{{ m.role }}]{% endmacro %}{{ f(messages[0]) }}", "[user]");
    check(
        "{{ ' a '.strip() + 'b'.upper() + 'a-b'.split('-')[1] + 'x'.replace('x', 'y') }}",
        "aBby",
    );
    check("{{ ','.join(['a', 'b']) }}{{ 'ab'.startswith('a') }}", "a,bTrue");
    check("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1");
    check(
        "{{ messages | length }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
        "32",
    );
    check(
        "{{ x is defined }}{{ messages is iterable }}{{ 'x' | default('y') }}{{ z | default('y') }}",
        "FalseTruexy",
    );
    check("{% set x %}a{{ 1 }}{% endset %}{{ x | upper | trim }}", "A1");
    check("{{ (1, 2)[1] }}{{ [1, [2]] }}{{ range(3) | list }}", "2[1, [2]][0, 1, 2]");
    check("{{ 'a' if messages else 'b' }}{{ messages[0].tool_calls is defined }}", "aFalse");
}

#[test]
fn a_refusal_reaches_the_user_in_the_templates_words() {
    for template in [
        "{{ raise_exception('roles must alternate') }}",
        "{% macro f() %}{{ raise_exception('roles must alternate') }}{% endmacro %}{{ f() }}",
    ] {
        let error = render(template).unwrap_err();
        assert_eq!(error, Error::TemplateRefused { message: "roles must alternate".into() });
        assert_eq!(error.fault(), Fault::Request);
        assert!(error.to_string().contains("roles must alternate"), "{error}");
    }
}

#[test]
fn what_fails_says_where() {
    let error = render("a\n{{ messages[0].content.nothing() }}").unwrap_err();
    assert!(
        matches!(&error, Error::TemplateFailed { problem } if problem.contains(":2")),
        "{error}"
    );
    for broken in [
        "{% for %}",
        "{{ a < b < c }}",
        "{{ 'x' * 99999999 }}",
        "{{ ('x') * (9) * -(-9) }}",
        &"x".repeat(text::TEMPLATE_BYTES_MAX + 1),
    ] {
        let error = ChatTemplate::new(&data(Some(broken))).unwrap_err();
        assert!(matches!(error, Error::BadTemplate { .. }), "{error}");
        assert_eq!(error.fault(), Fault::File);
    }
    let template = ChatTemplate::new(&data(None)).unwrap();
    assert!(matches!(
        template.render(&[], true, 0),
        Err(Error::BadParameter { name: "messages", .. })
    ));
    let long = messages(&[("user", &"x".repeat(text::INPUT_BYTES_MAX))]);
    assert!(matches!(template.render(&long, true, 0), Err(Error::InputTooLong { .. })));
}

/// Each of these would take gigabytes or hours in an engine without bounds.
#[test]
fn hostile_templates_are_stopped() {
    let growing = [
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(90) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(90) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(90) %}{% set ns.x = ns.x * 9 %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(90) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(90) %}{% set ns.x = ns.x | replace('a', 'aaaa') %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(90) %}{% set ns.x = ns.x.replace('a', 'aaaa') %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] | join(ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(90) %}{% set ns.x = ns.x.join([ns.x, ns.x]) %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(30) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(28) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x == ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}",
        "{% set ns = namespace() %}{% set ns.x = [ns, ns] %}{{ ns.x }}",
        "{% set a = namespace() %}{% for i in range(9999) %}{% set b = namespace(x=a) %}{% endfor %}",
        "{% set n = 99999999 %}{{ 'x' * n }}",
        "{{ 'x' | indent(999999999, true) }}",
        "{% for i in range(99999) %}{{ range(99999) | list }}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ messages[0].content }}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ];
    for template in growing {
        let error = render(template).unwrap_err();
        assert!(matches!(error, Error::TemplateLimit { .. }), "{template}: {error}");
    }
    let literal = "y".repeat(100_000);
    let literal =
        format!("{{% set x %}}{{% for i in range(99999) %}}{literal}{{% endfor %}}{{% endset %}}");
    assert!(matches!(render(&literal), Err(Error::TemplateLimit { .. })));
    for (template, part) in [
        ("{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('aaaaaaaa') }}", "recursion"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ '%999999999d' | format(1) }}", "format"),
        ("{{ '{:999999999}'.format(1) }}", "format"),
        ("{% set n = 999999999 %}{{ [1] * n }}", "multiplied"),
        ("{% include 'x' %}", "template"),
    ] {
        let error = render(template).unwrap_err();
        assert!(error.to_string().contains(part), "{template}: {error}");
    }
}
