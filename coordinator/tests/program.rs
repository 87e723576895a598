//! The program's own words: which setting counts, and what is said about bad ones.

use std::process::Command;

fn coordinator() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("WEFT_")) {
        command.env_remove(name);
    }
    command
}

/// What it says on its way out, which must be a failure.
fn complaint(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{said}");
    said
}

#[test]
fn a_flag_counts_before_the_environment_and_that_before_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weft.yaml");
    // Addresses that cannot be listened on are named in the complaint.
    std::fs::write(&file, "listen: the-file\nintensity: 50\n").unwrap();
    let serve = || {
        let mut command = coordinator();
        command.args(["serve", "--config"]).arg(&file).arg("--home").arg(folder.path());
        command
    };
    assert!(complaint(&mut serve()).contains("`the-file`"));
    assert!(complaint(serve().env("WEFT_LISTEN", "the-environment")).contains("`the-environment`"));
    let all =
        complaint(serve().env("WEFT_LISTEN", "the-environment").args(["--listen", "the-flag"]));
    assert!(all.contains("`the-flag`"), "{all}");
    assert!(complaint(serve().env("WEFT_INTENSITY", "0")).contains("intensity"));

    std::fs::write(&file, "lisetn: 127.0.0.1:0\n").unwrap();
    let unknown = complaint(&mut serve());
    assert!(unknown.contains("lisetn") && unknown.contains("weft.yaml"), "{unknown}");
    std::fs::remove_file(&file).unwrap();
    assert!(complaint(&mut serve()).contains("weft.yaml"));
}

#[test]
fn a_port_in_use_is_said_so() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = complaint(coordinator().args(["serve", "--listen", &address]));
    assert!(said.contains(&address) && said.contains("in use"), "{said}");
}

#[test]
fn a_model_that_cannot_be_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("not-a-model.gguf");
    std::fs::write(&path, b"GGUF, but no more of it").unwrap();
    for arguments in [vec!["pull"], vec!["serve", "--listen", "127.0.0.1:0", "--model"]] {
        let mut command = coordinator();
        let said = complaint(command.args(arguments).arg(&path).arg("--home").arg(folder.path()));
        assert!(said.contains("not-a-model.gguf") && said.contains("GGUF"), "{said}");
    }
    let said =
        complaint(coordinator().args(["pull", "no-such-model", "--home"]).arg(folder.path()));
    assert!(said.contains("no-such-model") && said.contains("smollm2-135m"), "{said}");
}
