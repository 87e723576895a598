//! What is fuzzed. A new target is a file here and a line in [`all`].

mod frame;
mod gguf;
mod manifest;

use crate::mutate::Seed;

/// A parser under test.
pub trait Target {
    /// Its name on the command line.
    fn name(&self) -> &'static str;
    /// Valid inputs, small, so that a million go quickly.
    fn corpus(&self) -> Vec<Seed>;
    /// The stage that the valid inputs come to.
    fn accepted(&self) -> &'static str;
    /// Parses an input and says how far it came. Asserts what must hold of accepted ones.
    fn feed(&self, input: &[Vec<u8>]) -> &'static str;
    /// The most heap that an input of so many bytes may take at once, bytes.
    fn heap_bytes_max(&self, input_bytes: usize) -> usize;
}

/// All targets.
pub fn all() -> Vec<Box<dyn Target>> {
    vec![
        Box::new(gguf::GgufTarget),
        Box::new(manifest::ManifestTarget),
        Box::new(frame::FrameTarget),
    ]
}

#[cfg(test)]
mod tests {
    use super::all;
    use crate::run::run;

    /// A short run of each; CI's long one is `cargo run -p fuzz -- all`.
    #[test]
    fn all_withstand_a_short_run_at_every_stage() {
        for target in all() {
            let report = run(target.as_ref(), 7, 0..20_000)
                .unwrap_or_else(|failure| panic!("{}: {failure}", target.name()));
            println!("{}:\n{report}", target.name());
            let accepted = report.stages.get(target.accepted()).copied().unwrap_or(0);
            assert!(accepted > 200, "{}: {accepted} of 20000 accepted", target.name());
            assert!(accepted < 15_000, "{}: {accepted} of 20000 accepted", target.name());
            assert!(report.stages.len() >= 3, "{}: stages {:?}", target.name(), report.stages);
        }
    }
}
