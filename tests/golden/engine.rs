//! The engine on the real default model: the hashes that an independent implementation of
//! NUMERICS.md gave, and llama.cpp's logits in f32.

#[allow(dead_code, reason = "the kernels' tests use the rest")]
#[path = "../kernels/ranks.rs"]
mod ranks;
mod real;
mod tensor;
#[allow(dead_code, reason = "the kernels' tests use the rest")]
#[path = "../kernels/tiny.rs"]
mod tiny;

use engine::{Class, Input, Isa, Output, Segment, Shard};
use numerics::choice::argmax;
use real::Model;
use serde_json::Value;

const CLASSES: [Class; 2] = [Class::Canonical1, Class::ExactF32];

fn ids(value: &Value) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().expect("a token id") as u32;
    value.as_array().expect("a list of token ids").iter().map(id).collect()
}

/// Feeds `tokens` from `position` on; the last one's logits.
fn feed(shard: &mut Shard, position: u32, tokens: &[u32]) -> Vec<f32> {
    let segment = Segment { session: 1, position, rows: tokens.len() as u32, logits_rows: 1 };
    match shard.step(&[segment], Input::Tokens(tokens)).expect("a sound step") {
        Output::Logits(logits) => logits,
        Output::Hidden(_) => panic!("the shard has the head"),
    }
}

fn greedy(logits: &[f32]) -> u32 {
    argmax(logits).expect("a vocabulary") as u32
}

/// FNV-1a 64 over the little-endian bits of all logits.
fn hash(logits: &[f32]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in logits.iter().flat_map(|x| x.to_bits().to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}

#[test]
fn both_classes_meet_the_hashes() {
    let model = Model::open(&tests::required_model());
    let golden = tests::golden("canonical1_smollm2.json");
    for class in CLASSES {
        let mut shard = model.shard(0..model.parts(), class, 1);
        for case in golden["cases"].as_array().expect("cases") {
            let (id, want) = (&case["id"], &case[class.name()]);
            let prompt = ids(&case["prompt_tokens"]);
            shard.release(1);
            let mut logits = feed(&mut shard, 0, &prompt);
            assert_eq!(hash(&logits), want["hash_prompt"], "{} {id}", class.name());
            let mut chosen = Vec::new();
            for n in 0..32 {
                if n == 8 {
                    assert_eq!(hash(&logits), want["hash_after_8"], "{} {id}", class.name());
                }
                chosen.push(greedy(&logits));
                logits = feed(&mut shard, (prompt.len() + n) as u32, &chosen[n..]);
            }
            assert_eq!(chosen, ids(&want["greedy_32"]), "{} {id}", class.name());
        }
    }
}

#[test]
fn threads_chunks_batches_and_splits_meet_the_same_hashes() {
    let model = Model::open(&tests::required_model());
    let golden = tests::golden("canonical1_smollm2.json");
    let cases = golden["cases"].as_array().expect("cases");
    let prompts: Vec<Vec<u32>> = cases.iter().map(|case| ids(&case["prompt_tokens"])).collect();
    for class in CLASSES {
        let want: Vec<&str> = cases
            .iter()
            .map(|case| case[class.name()]["hash_prompt"].as_str().expect("a hash"))
            .collect();
        for (threads, chunk) in [(1, 64), (2, 7), (3, 200)] {
            // Three stages of unequal size, the first two cut inside the layers.
            let parts = model.parts();
            let mut stages: Vec<Shard> = [0..1, 1..5, 5..parts - 1, parts - 1..parts]
                .into_iter()
                .map(|span| model.shard(span, class, threads))
                .collect();
            let hashes = prefill_together(&mut stages, &prompts, chunk);
            assert_eq!(hashes, want, "{}, {threads} threads, chunks of {chunk}", class.name());
        }
    }
}

/// Prefills all prompts side by side through the stages, at most `chunk` rows of each in a
/// step; the hash of each prompt's last logits.
fn prefill_together(stages: &mut [Shard], prompts: &[Vec<u32>], chunk: usize) -> Vec<String> {
    let mut hashes = vec![String::new(); prompts.len()];
    let longest = prompts.iter().map(Vec::len).max().expect("prompts");
    for position in (0..longest).step_by(chunk) {
        let (mut segments, mut tokens, mut ending) = (Vec::new(), Vec::new(), Vec::new());
        for (i, prompt) in prompts.iter().enumerate().filter(|(_, p)| p.len() > position) {
            let end = (position + chunk).min(prompt.len());
            let (rows, logits_rows) = ((end - position) as u32, u32::from(end == prompt.len()));
            let (session, position) = (i as u64, position as u32);
            segments.push(Segment { session, position, rows, logits_rows });
            tokens.extend_from_slice(&prompt[position as usize..end]);
            ending.extend((end == prompt.len()).then_some(i));
        }
        let mut output = None;
        for stage in stages.iter_mut() {
            let input = match &output {
                None => Input::Tokens(&tokens),
                Some(Output::Hidden(hidden)) => Input::Hidden(hidden),
                Some(Output::Logits(_)) => panic!("only the last stage has the head"),
            };
            output = Some(stage.step(&segments, input).expect("a sound step"));
        }
        let Some(Output::Logits(logits)) = output else { panic!("the last stage has the head") };
        if let Some(width) = logits.len().checked_div(ending.len()) {
            for (i, logits) in ending.into_iter().zip(logits.chunks(width)) {
                hashes[i] = hash(logits);
            }
        }
    }
    hashes
}

/// A qwen2 file with biases, half-split RoPE, a head of its own and K-quants: no hashes to
/// meet, so its classes are compared with each other, and its text is looked at.
#[test]
fn qwen_chooses_sensibly_in_both_classes_split_or_not() {
    let Some(path) = tests::optional_model("qwen2.5-coder-0.5b") else { return };
    let model = Model::open(&path);
    // "def fibonacci(n):\n    if n <= 1:\n        return n\n    return" in its tokenizer.
    let prompt =
        [750, 75698, 1445, 982, 262, 421, 308, 2651, 220, 16, 510, 286, 470, 308, 198, 262, 470];
    // " fibonacci(n-1) + fibonacci(n-2"
    let text = [75698, 1445, 12, 16, 8, 488, 75698, 1445, 12, 17];
    let parts = model.parts();
    let mut first_logits = Vec::new();
    for class in CLASSES {
        let mut shard = model.shard(0..parts, class, 2);
        let mut logits = feed(&mut shard, 0, &prompt);
        let mut stages = [model.shard(0..9, class, 1), model.shard(9..parts, class, 1)];
        let split = prefill_together(&mut stages, &[prompt.to_vec()], 5);
        assert_eq!(split, [hash(&logits)], "{}", class.name());
        first_logits.push(logits.clone());
        let mut chosen = Vec::new();
        for n in 0..text.len() {
            chosen.push(greedy(&logits));
            logits = feed(&mut shard, (prompt.len() + n) as u32, &chosen[n..]);
        }
        println!("{}: {chosen:?}", class.name());
        assert_eq!(chosen, text, "{}", class.name());
    }
    let apart = first_logits[0].iter().zip(&first_logits[1]).map(|(a, b)| f64::from((a - b).abs()));
    let mean = apart.sum::<f64>() / first_logits[0].len() as f64;
    println!("canonical-1 is {mean:.4} from exact-f32 on average over the vocabulary");
    assert!(mean > 0.0 && mean < 0.25, "{mean} apart");
}

/// The distance to llama.cpp's f32 path along its own greedy path.
#[derive(Default)]
struct Distance {
    sum: f64,
    max: f64,
    entries: usize,
    agreed: usize,
    steps: usize,
    /// Largest reference margin at which the greedy id differed.
    margin_missed: f64,
}

fn distance(model: &Model, class: Class, golden: &Value) -> Distance {
    let mut found = Distance::default();
    let mut shard = model.shard(0..model.parts(), class, 1);
    for case in golden["cases"].as_array().expect("cases") {
        let prompt = ids(&case["prompt_tokens"]);
        let generated = ids(&case["f32_exact"]["generated_tokens"]);
        let steps = case["f32_exact"]["steps"].as_array().expect("steps");
        assert_eq!(steps.len(), generated.len());
        shard.release(1);
        let mut logits = feed(&mut shard, 0, &prompt);
        for (n, step) in steps.iter().enumerate() {
            let top = step["top"].as_array().expect("the top logits");
            for entry in top {
                let id = entry[0].as_u64().expect("an id") as usize;
                let apart = (f64::from(logits[id]) - entry[1].as_f64().expect("a logit")).abs();
                found.sum += apart;
                found.max = found.max.max(apart);
                found.entries += 1;
            }
            found.steps += 1;
            if greedy(&logits) == generated[n] {
                found.agreed += 1;
            } else {
                let logit = |i: usize| top[i][1].as_f64().expect("a logit");
                found.margin_missed = found.margin_missed.max(logit(0) - logit(1));
            }
            if n + 1 < steps.len() {
                logits = feed(&mut shard, (prompt.len() + n) as u32, &generated[n..=n]);
            }
        }
    }
    println!(
        "{}: {:.5} apart on average, {:.5} at most over {} entries; greedy {} of {}, missed margins up to {:.3}",
        class.name(),
        found.sum / found.entries as f64,
        found.max,
        found.entries,
        found.agreed,
        found.steps,
        found.margin_missed
    );
    found
}

#[test]
fn logits_are_llama_cpps_along_its_greedy_path() {
    let model = Model::open(&tests::required_model());
    let golden = tests::golden("smollm2-135m-llama.cpp.json");
    let exact = distance(&model, Class::ExactF32, &golden);
    assert!(exact.steps >= 300 && exact.entries > exact.steps, "the golden has its cases");
    assert!(exact.max <= 0.001, "exact-f32 is {} apart", exact.max);
    assert_eq!(exact.agreed, exact.steps, "exact-f32 chooses as the reference does");
    // llama.cpp's own 8-bit path is 0.15 and 1.4 from its f32 path.
    let canonical = distance(&model, Class::Canonical1, &golden);
    let mean = canonical.sum / canonical.entries as f64;
    assert!(mean <= 0.25 && canonical.max <= 2.0, "canonical-1 is {mean}, {}", canonical.max);
    assert!(canonical.margin_missed <= 0.6, "missed at a margin of {}", canonical.margin_missed);
}

/// Largest ‖a − b‖ / ‖b‖ of a row of `canonical-1`'s boundary to one of `exact-f32`'s, both
/// given the same input.
fn apart(got: &[f32], want: &[f32], d_model: usize) -> f64 {
    let row = |(a, b): (&[f32], &[f32])| {
        let square = |x: f32| f64::from(x) * f64::from(x);
        let apart: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
        let size: f64 = b.iter().map(|b| square(*b)).sum();
        (apart / size).sqrt()
    };
    got.chunks(d_model).zip(want.chunks(d_model)).map(row).fold(0.0, f64::max)
}

fn hidden(shard: &mut Shard, rows: usize, input: Input<'_>) -> Vec<f32> {
    let segment = Segment { session: 1, position: 0, rows: rows as u32, logits_rows: 0 };
    match shard.step(&[segment], input).expect("a sound step") {
        Output::Hidden(hidden) => hidden,
        Output::Logits(_) => panic!("the shard has no head"),
    }
}

/// `exact-f32` stands for a GPU here: what the two classes differ by is the rounding of
/// activations, which is the most by which an honest GPU can be away from an auditor that
/// computes in `canonical-1`.
#[test]
fn rounded_activations_stay_within_the_band_of_audits() {
    let band = scheduler::verdict::BAND_WGSL_CANONICAL;
    let model = Model::open(&tests::required_model());
    let golden = tests::golden("canonical1_smollm2.json");
    let parts = model.parts();
    let mut embedding = model.shard(0..1, Class::ExactF32, 1);
    let mut first = model.shard(1..parts / 2, Class::ExactF32, 1);
    let spans = [1..parts - 1, parts / 2..parts - 1];
    let mut pairs =
        spans.map(|span| (span.start, CLASSES.map(|class| model.shard(span.clone(), class, 1))));
    let mut largest = 0f64;
    for case in golden["cases"].as_array().expect("cases") {
        let prompt = ids(&case["prompt_tokens"]);
        let shards = pairs.iter_mut().flat_map(|(_, pair)| pair);
        shards.chain([&mut embedding, &mut first]).for_each(|shard| shard.release(1));
        let mut input = hidden(&mut embedding, prompt.len(), Input::Tokens(&prompt));
        for (start, pair) in &mut pairs {
            if *start > 1 {
                input = hidden(&mut first, prompt.len(), Input::Hidden(&input));
            }
            let [rounded, exact] =
                pair.each_mut().map(|shard| hidden(shard, prompt.len(), Input::Hidden(&input)));
            let apart = apart(&rounded, &exact, exact.len() / prompt.len());
            println!("SmolLM2 from part {start}, {} rows: {apart:.4} apart", prompt.len());
            largest = largest.max(apart);
        }
    }
    for (name, tiny) in tiny::models() {
        let tokens = tiny.tokens(1, 100);
        let ends = tiny.parts() - 1;
        let mut embedding = tiny.shard(0..1, Class::ExactF32, Isa::best(), 1);
        let input = hidden(&mut embedding, tokens.len(), Input::Tokens(&tokens));
        let [rounded, exact] = CLASSES.map(|class| {
            let mut shard = tiny.shard(1..ends, class, Isa::best(), 1);
            hidden(&mut shard, tokens.len(), Input::Hidden(&input))
        });
        let apart = apart(&rounded, &exact, exact.len() / tokens.len());
        println!("{name}: {apart:.4} apart");
        largest = largest.max(apart);
    }
    assert!(largest < band / 2.0, "{largest} apart, and the band is {band}");
}
