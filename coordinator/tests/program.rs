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

#[test]
fn an_operator_finds_the_database_that_serve_was_told_of_and_makes_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let file = folder.path().join("weft.yaml");
    std::fs::write(&file, format!("home: {}\n", home.display())).unwrap();
    let admin = |arguments: &[&str]| {
        let mut command = coordinator();
        command.args(arguments).arg("--config").arg(&file);
        command
    };
    for arguments in
        [&["workers"][..], &["invites"], &["revoke", "1"], &["unban", "0123456789abcdef"]]
    {
        let said = complaint(&mut admin(arguments));
        assert!(said.contains("there is no database") && said.contains("fleet.db"), "{said}");
    }
    assert!(!home.exists(), "who looks for a database makes none");
    let invited = admin(&["invite"]).output().unwrap();
    let said = String::from_utf8(invited.stderr).unwrap();
    let database = home.join("fleet.db");
    assert!(invited.status.success() && said.contains(&*database.to_string_lossy()), "{said}");
    let listed = admin(&["invites"]).output().unwrap();
    assert!(String::from_utf8(listed.stdout).unwrap().contains("open"));
    let short = complaint(&mut admin(&["unban", ""]));
    assert!(short.contains("first 8 characters"), "{short}");
}
