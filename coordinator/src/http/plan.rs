//! From a request to what is to be generated: template, tokens, checks.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::{ChatMessage, Options, Prompt, TIMEOUT_DEFAULT_S, WeftOptions};
use axum::http::StatusCode;
use scheduler::{Parallelism, Wish};
use text::{Generation, Message, Sampler, SamplingParams, Special, StopRules};
use tokio::time::Instant;

use super::failure::Failure;
use super::state::{AppState, Model};

/// What a request wants continued.
pub(super) enum Source {
    /// A conversation, through the model's chat template.
    Chat(Vec<ChatMessage>),
    /// Texts or tokens as they are.
    Prompts(Vec<Prompt>),
}

impl Source {
    /// The field that it came in.
    fn param(&self) -> &'static str {
        match self {
            Source::Chat(_) => "messages",
            Source::Prompts(_) => "prompt",
        }
    }
}

/// What is to be generated.
pub(super) struct Plan {
    pub model: Arc<Model>,
    /// Token ids, one list per prompt, none empty.
    pub prompts: Vec<Vec<u32>>,
    /// Choices per prompt.
    pub choices: u32,
    /// How each choice of a prompt begins; cloned for each.
    pub starts: Vec<Start>,
    pub deadline: Instant,
    pub wish: Wish,
}

/// The state in which a choice begins.
#[derive(Clone)]
pub(super) struct Start {
    pub sampler: Sampler,
    pub generation: Generation,
}

/// Makes a plan of a request.
///
/// # Errors
/// 400 for what cannot be: parameters out of range, a conversation that the template refuses,
/// a prompt that is empty, too long, or has tokens that the model does not know.
pub(super) async fn plan(
    state: &AppState,
    model: Arc<Model>,
    source: Source,
    options: Options,
    tokens_default: Option<u32>,
    logprobs: Option<u32>,
) -> Result<Plan, Failure> {
    let timeout = Duration::from_secs_f64(options.timeout.unwrap_or(TIMEOUT_DEFAULT_S));
    let deadline = Instant::now() + timeout;
    let choices = options.choices();
    let seed = options.seed.unwrap_or_else(draw_seed);
    let wish = wish(&options.weft);
    let work = move || {
        let params = sampling_params(&options, seed, logprobs);
        let sampler = Sampler::new(params, model.tokenizer.vocabulary().len())?;
        let param = source.param();
        let prompts = tokenize(&model, source).map_err(|f| f.of_param(param))?;
        let mut starts = Vec::with_capacity(prompts.len());
        for prompt in &prompts {
            let generation = begin(&model, prompt.len(), &options, tokens_default, param)?;
            let mut sampler = sampler.clone();
            sampler.see_prompt(prompt);
            starts.push(Start { sampler, generation });
        }
        Ok(Plan { model, prompts, choices, starts, deadline, wish })
    };
    state.blocking(work).await
}

/// What the scheduler is asked for.
fn wish(weft: &WeftOptions) -> Wish {
    let parallelism = match weft.parallelism {
        api::Parallelism::Auto => Parallelism::Auto,
        api::Parallelism::None => Parallelism::None,
        api::Parallelism::Pipeline => Parallelism::Pipeline,
        api::Parallelism::Tensor => Parallelism::Tensor,
        api::Parallelism::Hybrid => Parallelism::Hybrid,
    };
    Wish { nodes_max: weft.nodes, trusted_only: weft.trusted_only, parallelism }
}

/// OpenAI's defaults where the request says nothing.
fn sampling_params(options: &Options, seed: u64, logprobs: Option<u32>) -> SamplingParams {
    let default = SamplingParams::default();
    SamplingParams {
        temperature: options.temperature.unwrap_or(default.temperature),
        top_k: options.top_k.unwrap_or(default.top_k),
        top_p: options.top_p.unwrap_or(default.top_p),
        min_p: options.min_p.unwrap_or(default.min_p),
        repetition_penalty: options.repetition_penalty.unwrap_or(default.repetition_penalty),
        frequency_penalty: options.frequency_penalty.unwrap_or(default.frequency_penalty),
        presence_penalty: options.presence_penalty.unwrap_or(default.presence_penalty),
        logit_bias: options.logit_bias.clone(),
        seed,
        logprobs,
    }
}

fn draw_seed() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    u64::from_le_bytes(bytes)
}

fn tokenize(model: &Model, source: Source) -> Result<Vec<Vec<u32>>, Failure> {
    match source {
        Source::Chat(messages) => {
            let messages: Vec<Message> = messages.into_iter().map(message).collect();
            let text = model.template.render(&messages, true, unix_s())?;
            Ok(vec![model.tokenizer.encode_prompt(&text, Special::Parse)?])
        }
        Source::Prompts(prompts) => {
            prompts.into_iter().map(|prompt| tokenize_prompt(model, prompt)).collect()
        }
    }
}

fn message(message: ChatMessage) -> Message {
    Message { role: message.role.as_str().to_owned(), content: message.content }
}

/// Today, for templates that say it.
fn unix_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs() as i64)
}

fn tokenize_prompt(model: &Model, prompt: Prompt) -> Result<Vec<u32>, Failure> {
    let tokens = match prompt {
        Prompt::Text(text) => model.tokenizer.encode_prompt(&text, Special::Parse)?,
        Prompt::Tokens(tokens) => {
            for &id in &tokens {
                model.tokenizer.vocabulary().kind(id)?;
            }
            tokens
        }
    };
    if tokens.is_empty() {
        let message = "The prompt is empty: this model needs at least one token to go on from.";
        let status = StatusCode::BAD_REQUEST;
        return Err(Failure::request(status, "empty_prompt", message.to_owned()));
    }
    Ok(tokens)
}

/// Checks that prompt and answer fit the context. A length that the request did not ask for
/// is cut to what is left.
fn begin(
    model: &Model,
    prompt: usize,
    options: &Options,
    tokens_default: Option<u32>,
    param: &str,
) -> Result<Generation, Failure> {
    let context = model.context;
    let wanted = options.max_tokens.unwrap_or(1);
    let total = prompt as u64 + u64::from(wanted);
    if total > u64::from(context) {
        let asked = match options.max_tokens {
            None => format!("your prompt has {prompt} tokens"),
            Some(max) => format!(
                "you requested {total} tokens ({prompt} in the prompt, {max} in the completion)"
            ),
        };
        let message = format!(
            "This model's maximum context length is {context} tokens, but {asked}. Please \
             reduce the length of the prompt or the completion."
        );
        let status = StatusCode::BAD_REQUEST;
        return Err(Failure::request(status, "context_length_exceeded", message).of_param(param));
    }
    let rules = StopRules {
        stop: options.stop.clone(),
        max_tokens: options.max_tokens.or(tokens_default),
        ignore_end: false,
    };
    Ok(Generation::new(&rules, prompt as u32, context)?)
}
