//! Chat templates: messages in, the text that a model reads out.
//!
//! A template comes with the model, so it is a stranger's program. It reaches nothing but the messages, the special
//! tokens and the date, and runs on bounded fuel, depth and length.

use bitmill_checkpoint::Checkpoint;
use bitmill_report::Utc;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, merge_maps};
use minijinja::{Environment, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::strftime::strftime;
use crate::to_json::to_json;
use crate::{Error, Tokenizer};

/// Longest template: the longest published ones have some 20 kB.
const LONGEST: usize = 1 << 20;
/// Instructions and copied data of one rendering: a hundred turns of the costliest published template take a tenth.
const FUEL: u64 = 5_000_000;
/// Nesting of macro calls.
const DEPTH: usize = 200;

/// What Qwen's first generation was trained on; its checkpoints ship no template.
const CHATML: &str = "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Who says something in a chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// Sets the scene, once and first.
    System,
    /// Asks.
    User,
    /// Answers: the model.
    Assistant,
}

impl Speaker {
    /// As templates spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who said it.
    pub speaker: Speaker,
    /// What was said.
    pub content: String,
}

/// The texts of special tokens, which templates refer to by these names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateTokens {
    /// `bos_token`.
    pub bos: Option<String>,
    /// `eos_token`.
    pub eos: Option<String>,
    /// `pad_token`.
    pub padding: Option<String>,
    /// `unk_token`.
    pub unknown: Option<String>,
}

/// A model's chat template, in Jinja as transformers' `apply_chat_template` runs it.
///
/// Departs from it: `strftime_now` gives UTC, not local time, and a `{% generation %}` block is its content.
///
/// ```
/// use bitmill_text::{ChatTemplate, Message, Speaker, TemplateTokens};
/// let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
/// let template = ChatTemplate::new(source, TemplateTokens::default())?;
/// let said = Message { speaker: Speaker::User, content: "Hi".to_owned() };
/// assert_eq!(template.render(&[said], true)?, "<user>Hi");
/// # Ok::<(), bitmill_text::Error>(())
/// ```
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: TemplateTokens,
    more: serde_json::Map<String, serde_json::Value>,
}

const NAME: &str = "chat template";

impl ChatTemplate {
    /// Compiles `source`.
    ///
    /// # Errors
    /// [`Error::Template`] with the line where it is no Jinja.
    pub fn new(source: &str, tokens: TemplateTokens) -> Result<Self, Error> {
        Self::at(source, tokens, Utc::now)
    }

    /// Compiles `source` with another clock.
    pub(crate) fn at(source: &str, tokens: TemplateTokens, clock: fn() -> Utc) -> Result<Self, Error> {
        if source.len() > LONGEST {
            let problem = format!("it has {} bytes, and {LONGEST} are the most", source.len());
            return Err(Error::Template { problem });
        }
        let mut environment = Environment::new();
        // As transformers sets up its environment: plain text, blocks on lines of their own leave none behind.
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(template_error)?);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(DEPTH);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        add_clock(&mut environment, clock);
        // In Jinja `none` is not iterable; templates that ask go on to take its length.
        environment.add_test("iterable", |value: Value| !value.is_none() && value.try_iter().is_ok());
        environment.add_filter("tojson", |value: Value, options: Kwargs| to_json(&value, &options));
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(template_error)?;
        Ok(Self { environment, tokens, more: serde_json::Map::new() })
    }

    /// The template that comes with a model; ChatML for Qwen's first generation, which ships none.
    ///
    /// # Errors
    /// [`Error::NoTemplate`]; [`Error::Template`]; [`Error::TemplateToken`] if it writes a token that the vocabulary
    /// lacks.
    pub fn from_checkpoint(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<Self, Error> {
        let source = match checkpoint.chat_template() {
            Some(source) => source,
            None if checkpoint.config().family.name() == "qwen" => CHATML.to_owned(),
            None => return Err(Error::NoTemplate { checkpoint: checkpoint.name() }),
        };
        Self::for_tokenizer(&source, tokenizer)
    }

    /// Compiles `source` for the vocabulary that will read what it writes.
    ///
    /// # Errors
    /// [`Error::Template`]; [`Error::TemplateToken`].
    pub fn for_tokenizer(source: &str, tokenizer: &Tokenizer) -> Result<Self, Error> {
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_of(id));
        let tokens = TemplateTokens {
            bos: text(tokenizer.bos()),
            eos: text(tokenizer.eos()),
            padding: text(tokenizer.padding()),
            unknown: text(tokenizer.unknown()),
        };
        let template = Self::new(source, tokens)?;
        let probe = Message { speaker: Speaker::User, content: "x".to_owned() };
        // A template that refuses the probe says why when it is used.
        let written = template.render(&[probe], true).unwrap_or_default();
        match bracketed(&written).find(|token| tokenizer.id_of(token).is_none()) {
            Some(token) => Err(Error::TemplateToken { token: token.to_owned() }),
            None => Ok(template),
        }
    }

    /// Sets a variable of the template's own, such as Qwen3's `enable_thinking`.
    pub fn set(&mut self, name: &str, value: serde_json::Value) {
        self.more.insert(name.to_owned(), value);
    }

    /// Makes it always this moment, so that the same messages give the same text on another day.
    pub fn set_clock(&mut self, clock: fn() -> Utc) {
        add_clock(&mut self.environment, clock);
    }

    /// The text of `messages`, and with `add_generation_prompt` the beginning of the answer to them.
    ///
    /// # Errors
    /// [`Error::Template`] with the template's own words if it refuses these messages, or if it runs too long.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, Error> {
        let messages: Value = messages
            .iter()
            .map(|message| {
                Value::from_pairs([
                    ("role", Value::from(message.speaker.name())),
                    ("content", Value::from(message.content.as_str())),
                ])
            })
            .collect();
        // Absent tokens stay undefined, as transformers passes only those that are set.
        let named = [
            ("bos_token", &self.tokens.bos),
            ("eos_token", &self.tokens.eos),
            ("pad_token", &self.tokens.padding),
            ("unk_token", &self.tokens.unknown),
        ];
        let tokens = Value::from_pairs(
            named.into_iter().filter_map(|(name, text)| Some((name, Value::from(text.as_deref()?)))),
        );
        let own = Value::from(Serde(&self.more));
        let given = context! {
            messages => messages, add_generation_prompt => add_generation_prompt, tools => (), documents => (),
        };
        let context = merge_maps([own, tokens, given]);
        let template = self.environment.get_template(NAME).map_err(template_error)?;
        template.render(context).map_err(template_error)
    }

    /// The token that the template puts behind an answer, if it is a special one: where an answer ends, whatever
    /// generation_config.json says.
    pub fn turn_end(&self, tokenizer: &Tokenizer) -> Option<u32> {
        const ANSWER: &str = "qzx";
        let said = |speaker, content: &str| Message { speaker, content: content.to_owned() };
        let messages = [said(Speaker::User, "x"), said(Speaker::Assistant, ANSWER)];
        let text = self.render(&messages, false).ok()?;
        let (_, behind) = text.rsplit_once(ANSWER)?;
        let first = *tokenizer.encode(behind.trim_start()).ok()?.first()?;
        tokenizer.is_special(first).then_some(first)
    }
}

fn add_clock(environment: &mut Environment<'static>, clock: fn() -> Utc) {
    environment.add_function("strftime_now", move |format: String| {
        strftime(&format, clock()).map_err(|directive| {
            let problem = format!("strftime_now does not know `{directive}`");
            minijinja::Error::new(ErrorKind::InvalidOperation, problem)
        })
    });
}

/// Tokens of the kind `<|name|>` in `text`.
fn bracketed(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("<|").filter_map(|(start, _)| {
        let rest = &text[start + 2..];
        let name = &rest[..rest.find("|>")?];
        let token = &text[start..start + 2 + name.len() + 2];
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        (!name.is_empty() && name.chars().all(plain)).then_some(token)
    })
}

/// `{% generation %}`, which marks an answer for training, as a block that is always there.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start + 2..].find("%}") else { break };
        let inner = &rest[start + 2..start + 2 + length];
        let marks: &[char] = &['-', '+'];
        let (before, after) = (inner.starts_with(marks), inner.ends_with(marks));
        let name = inner[usize::from(before)..].trim_end_matches(marks).trim();
        let plain = match name {
            "generation" => " if true ",
            "endgeneration" => " endif ",
            _ => "",
        };
        out.push_str(&rest[..start + 2]);
        if plain.is_empty() {
            out.push_str(inner);
        } else {
            out.push_str(&inner[..usize::from(before)]);
            out.push_str(plain);
            out.push_str(&inner[inner.len() - usize::from(after)..]);
        }
        out.push_str("%}");
        rest = &rest[start + 2 + length + 2..];
    }
    out.push_str(rest);
    out
}

fn template_error(error: minijinja::Error) -> Error {
    let line = error.line().map_or_else(String::new, |line| format!("line {line}: "));
    let what = match error.detail() {
        // A template's own `raise_exception` is its detail alone.
        Some(detail) if error.kind() == ErrorKind::InvalidOperation => detail.to_owned(),
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    Error::Template { problem: format!("{line}{what}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(content: &str) -> Vec<Message> {
        vec![Message { speaker: Speaker::User, content: content.to_owned() }]
    }

    fn render(source: &str) -> Result<String, Error> {
        ChatTemplate::at(source, TemplateTokens::default(), || Utc::at(0))?.render(&user("Hi"), true)
    }

    #[test]
    fn python_in_templates_works() {
        for (source, text) in [
            ("{{ 'a,b'.split(',')[-1] }}{{ ' x '.strip() }}{{ 'ab'.startswith('a') }}", "bxTrue"),
            ("{{ strftime_now('%d %b %Y') }}", "01 Jan 1970"),
            ("{{ messages[0].content ~ messages[::-1][0]['role'] }}", "Hiuser"),
            ("{{ none }}{{ nothing }}{{ bos_token is defined }}", "NoneFalse"),
            ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
            ("a\n  {% if true %}\n  b\n  {% endif %}\nc", "a\n  b\nc"),
            ("{%- generation -%} x {%- endgeneration %}|{% generation %}y{% endgeneration %}", "x|y"),
            (
                "{% set n = namespace(x=1) %}{% for m in messages %}{% set n.x = 2 %}{% endfor %}{{ n.x }}",
                "2",
            ),
            ("{{ tools is none }}{{ add_generation_prompt }}<>&'", "TrueTrue<>&'"),
            ("{% if tools is iterable and tools | length > 0 %}x{% endif %}{{ 'ab' is iterable }}", "True"),
            ("{{ 1 is iterable }}{{ messages is iterable }}{{ nothing is iterable }}", "FalseTrueTrue"),
        ] {
            assert_eq!(render(source).unwrap(), text, "{source}");
        }
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let value = "{'b': [1, 2.5, true, none], 'a': 'é<\"', 'c': {}}";
        for (filter, text) in [
            ("tojson", r#"{"b": [1, 2.5, true, null], "a": "é<\"", "c": {}}"#),
            ("tojson(sort_keys=true)", r#"{"a": "é<\"", "b": [1, 2.5, true, null], "c": {}}"#),
            ("tojson(ensure_ascii=true)", r#"{"b": [1, 2.5, true, null], "a": "\u00e9<\"", "c": {}}"#),
            ("tojson(separators=(',', ':'))", r#"{"b":[1,2.5,true,null],"a":"é<\"","c":{}}"#),
            (
                "tojson(indent=2)",
                "{\n  \"b\": [\n    1,\n    2.5,\n    true,\n    null\n  ],\n  \"a\": \"é<\\\"\",\n  \"c\": {}\n}",
            ),
        ] {
            assert_eq!(render(&format!("{{{{ {value} | {filter} }}}}")).unwrap(), text, "{filter}");
        }
    }

    #[test]
    fn hostile_templates_end() {
        for source in [
            "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
            "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
            "{{ 'x' * 1000000000000 }}",
            "{% set n = namespace(s='x') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
            "{{ range(1000000000000) | list }}",
            "{% include 'chat template' %}",
            &"{{ (".repeat(5000),
            &"{% if true %}".repeat(20_000),
            &format!("{{{{ {}1{} }}}}", "[".repeat(100_000), "]".repeat(100_000)),
            &"x".repeat(LONGEST + 1),
        ] {
            let error = render(source).unwrap_err();
            assert!(matches!(error, Error::Template { .. }), "{error}");
        }
    }

    #[test]
    fn tags_and_tokens_whose_two_ends_overlap_have_no_inside() {
        assert_eq!(without_generation_tags("a{%}b%}c{%"), "a{%}b%}c{%");
        assert_eq!(bracketed("<|><|a|><||><|b").collect::<Vec<_>>(), ["<|a|>"]);
    }

    #[test]
    fn another_clock_can_be_set() {
        let mut template = ChatTemplate::new("{{ strftime_now('%Y') }}", TemplateTokens::default()).unwrap();
        template.set_clock(|| Utc::at(0));
        assert_eq!(template.render(&user("Hi"), true).unwrap(), "1970");
    }

    #[test]
    fn a_refusal_is_in_the_templates_own_words() {
        let error = render("\n{{ raise_exception('roles must alternate') }}").unwrap_err();
        assert_eq!(error.to_string(), "the chat template: line 2: roles must alternate");
        let error = render("{{ nothing.at.all }}").unwrap_err();
        assert!(error.to_string().contains("undefined"), "{error}");
        let error = render("{% if %}").unwrap_err();
        assert!(error.to_string().contains("syntax error"), "{error}");
    }

    #[test]
    fn tokens_are_found_by_their_brackets() {
        let text = "<|im_start|>user\n<|a b|><|<|eot|>|><|x";
        assert_eq!(bracketed(text).collect::<Vec<_>>(), ["<|im_start|>", "<|eot|>"]);
    }
}
