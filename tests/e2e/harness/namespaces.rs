//! Machines of their own, as far as the network goes: Linux namespaces, each joined to this
//! machine by a pair of virtual Ethernet devices.

use std::process::Command;

/// A namespace with one way out. It is gone when this is dropped.
pub struct Namespace {
    name: String,
    /// This machine's side of the pair.
    device: String,
    /// This machine's address on it.
    pub host: String,
}

impl Namespace {
    /// The `index`th of this process, from 0 to 63.
    ///
    /// # Errors
    /// This machine does not give the right to it, or has not got the tools; why, in words.
    pub fn new(index: u8) -> Result<Namespace, String> {
        assert!(index < 64, "the addresses below go so far");
        let id = std::process::id();
        let (name, device) = (format!("weft-{id}-{index}"), format!("wf{id}h{index}"));
        let inner = format!("wf{id}n{index}");
        // Of 198.18.0.0/15, which is for tests of networks (RFC 2544), a part of this process's.
        let net = format!("198.{}.{}", 18 + id / 256 % 2, id % 256);
        let (host, guest) =
            (format!("{net}.{}", 4 * index + 1), format!("{net}.{}", 4 * index + 2));
        ip(&["netns", "add", &name])?;
        // From here on it is taken away again, whatever fails.
        let made = Namespace { name, device, host };
        ip(&["link", "add", &made.device, "type", "veth", "peer", "name", &inner])?;
        ip(&["link", "set", &inner, "netns", &made.name])?;
        ip(&["address", "add", &format!("{}/30", made.host), "dev", &made.device])?;
        ip(&["link", "set", &made.device, "up"])?;
        ip(&["-n", &made.name, "address", "add", &format!("{guest}/30"), "dev", &inner])?;
        ip(&["-n", &made.name, "link", "set", &inner, "up"])?;
        Ok(made)
    }

    /// Has what is sent, in both directions, go through `netem` with these settings.
    ///
    /// # Errors
    /// This machine's kernel has no netem, or there is no `tc`.
    pub fn netem(&self, settings: &[&str]) -> Result<(), String> {
        let inner = self.device.replace('h', "n");
        let qdisc = ["qdisc", "add", "dev"];
        run("tc", &[&qdisc[..], &[&self.device, "root", "netem"], settings].concat())?;
        let inside = [&["-n", &self.name][..], &qdisc[..], &[&inner, "root", "netem"], settings];
        run("tc", &inside.concat())
    }

    /// Drops everything, or lets it through again.
    pub fn part(&self, parted: bool) {
        let state = if parted { "down" } else { "up" };
        ip(&["link", "set", &self.device, state]).expect("it could be set up");
    }

    /// A program that is to run inside. `ip` becomes it, so it is a child like any other.
    pub fn command(&self, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The pair of devices goes with the side that is inside.
        if let Err(error) = ip(&["netns", "delete", &self.name]) {
            eprintln!("{error}");
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let line = || format!("{program} {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{}: {error}", line()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{}: {}", line(), String::from_utf8_lossy(&output.stderr).trim())),
    }
}
