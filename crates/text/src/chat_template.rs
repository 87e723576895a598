//! Messages to a prompt, by the template in the model's file.

use std::sync::Arc;

use minijinja::machinery::{self, CompiledTemplate, TemplateConfig};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value, context};

use crate::bounds::{Budget, Exceeded, bound_template, check_literals, environment};
use crate::error::{Error, Result};
use crate::strftime::strftime;
use crate::vocabulary::TokenizerData;

/// Bytes of a template at most.
pub const TEMPLATE_BYTES_MAX: usize = 256 * 1024;
/// Messages of a request at most.
pub const MESSAGES_MAX: usize = 4096;
/// How deep macros and loops may recurse.
const RECURSION_MAX: usize = 64;

/// What a file without a template gets: ChatML, which most instruct models know.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: "system", "user", "assistant", or what else the template knows.
    pub role: String,
    /// What was said; several text parts are joined by the caller.
    pub content: String,
}

/// A model's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    is_fallback: bool,
    /// Texts of BOS, EOS, unknown and padding, by the names that templates use.
    special_tokens: Vec<(&'static str, String)>,
}

/// `raise_exception` was called; travels as the source of a minijinja error.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl ChatTemplate {
    /// The file's template, or ChatML if it has none.
    ///
    /// # Errors
    /// [`Error::BadTemplate`] for one that does not compile or is longer than
    /// [`TEMPLATE_BYTES_MAX`].
    pub fn new(data: &TokenizerData) -> Result<Self> {
        let text = |id: Option<u32>| data.tokens.get(id? as usize).cloned();
        let special_tokens = [
            ("bos_token", text(data.bos)),
            ("eos_token", text(data.eos)),
            ("unk_token", text(data.unknown)),
            ("pad_token", text(data.padding)),
        ];
        let template = ChatTemplate {
            source: data.chat_template.clone().unwrap_or_else(|| CHATML.to_owned()),
            is_fallback: data.chat_template.is_none(),
            special_tokens: special_tokens
                .into_iter()
                .filter_map(|(name, text)| Some((name, text?)))
                .collect(),
        };
        let bytes = template.source.len();
        if bytes > TEMPLATE_BYTES_MAX {
            let problem = format!("it has {bytes} bytes, expected at most {TEMPLATE_BYTES_MAX}");
            return Err(Error::BadTemplate { problem });
        }
        compile(&template.source)
            .map_err(|error| Error::BadTemplate { problem: error.to_string() })?;
        Ok(template)
    }

    /// Whether the file has no template and ChatML is used in its place.
    pub fn is_fallback(&self) -> bool {
        self.is_fallback
    }

    /// The prompt of a conversation, to be tokenized with [`crate::Special::Parse`].
    ///
    /// `now_unix_s` is today's date for templates that print it, in seconds since 1970, UTC.
    ///
    /// # Errors
    /// [`Error::TemplateRefused`] with the template's own words if it refuses the messages,
    /// [`Error::TemplateFailed`] if it fails otherwise, [`Error::TemplateLimit`] if it needs
    /// too many steps or too much memory, [`Error::BadParameter`] for no messages or more than
    /// [`MESSAGES_MAX`], [`Error::InputTooLong`] for a prompt that could not be tokenized.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        now_unix_s: i64,
    ) -> Result<String> {
        if messages.is_empty() || messages.len() > MESSAGES_MAX {
            let problem = format!("{} of them, expected 1 to {MESSAGES_MAX}", messages.len());
            return Err(Error::BadParameter { name: "messages", problem });
        }
        let bytes: usize = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        within_input(bytes)?;

        let budget = Budget::new();
        let mut env = environment(&budget);
        add_functions(&mut env, now_unix_s);
        let failed = |error: minijinja::Error| user_error(&error, 0);
        let (compiled, fuel) = compile(&self.source).map_err(failed)?;
        env.set_fuel(Some(fuel));
        env.set_recursion_limit(RECURSION_MAX);
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role.as_str(), content => message.content.as_str() })
            .collect();
        let special_tokens = Value::from_pairs(
            self.special_tokens.iter().map(|(name, text)| (*name, text.as_str())),
        );
        // Hugging Face passes tools and documents even when there are none.
        let variables = context! {
            messages,
            add_generation_prompt,
            tools => Value::from(()),
            documents => Value::from(()),
            ..special_tokens
        };
        let mut text = String::new();
        machinery::eval(
            &env,
            &compiled.instructions,
            variables,
            &compiled.blocks,
            &mut machinery::make_string_output(&mut text),
            AutoEscape::None,
        )
        .map_err(|error| user_error(&error, fuel))?;
        within_input(text.len())?;
        Ok(text)
    }
}

fn within_input(bytes: usize) -> Result<()> {
    let limit = crate::INPUT_BYTES_MAX;
    if bytes > limit {
        return Err(Error::InputTooLong { got: bytes, limit });
    }
    Ok(())
}

/// Whitespace as Hugging Face has it; bounded as [`crate::bounds`] says.
fn compile(source: &str) -> std::result::Result<(CompiledTemplate<'_>, u64), minijinja::Error> {
    let syntax_config = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    check_literals(source, syntax_config.clone())?;
    let config =
        TemplateConfig { syntax_config, default_auto_escape: Arc::new(|_| AutoEscape::None) };
    let mut compiled = CompiledTemplate::new("chat_template", source, &config)?;
    let fuel = bound_template(&mut compiled)?;
    Ok((compiled, fuel))
}

fn add_functions(env: &mut Environment<'_>, now_unix_s: i64) {
    env.add_function(
        "raise_exception",
        |message: String| -> std::result::Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception")
                .with_source(Raised(message)))
        },
    );
    env.add_function("strftime_now", move |format: String| strftime(&format, now_unix_s));
}

fn user_error(error: &minijinja::Error, fuel: u64) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return Error::TemplateRefused { message: message.clone() };
        }
        if let Some(Exceeded { what, limit }) = current.downcast_ref() {
            return Error::TemplateLimit { what, limit: *limit };
        }
        let engine = current.downcast_ref::<minijinja::Error>();
        if engine.is_some_and(|engine| engine.kind() == ErrorKind::OutOfFuel) {
            return Error::TemplateLimit { what: "steps", limit: fuel };
        }
        cause = current.source();
    }
    Error::TemplateFailed { problem: error.to_string() }
}
