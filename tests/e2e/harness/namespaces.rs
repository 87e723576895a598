//! Machines of their own, as far as the network goes: Linux namespaces, each joined to this
//! machine by a pair of virtual Ethernet devices.

use std::path::Path;
use std::process::Command;
use std::sync::Once;

/// Where `ip` keeps the namespaces that have names.
const NAMESPACES: &str = "/run/netns";
/// Where the kernel shows this namespace's network devices.
const DEVICES: &str = "/sys/class/net";

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
        static FIRST: Once = Once::new();
        // What has this process's number before it has made any is an earlier one's.
        let is_gone = |of: u32| of == id || !Path::new(&format!("/proc/{of}")).exists();
        FIRST.call_once(|| remove_those_of(is_gone));
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
        // The pair would go with the side that is inside, but only some time after the namespace,
        // and the next test's has the same name. There is none if it could not be made.
        let _ = ip(&["link", "delete", &self.device]);
        if let Err(error) = ip(&["netns", "delete", &self.name]) {
            eprintln!("{error}");
        }
    }
}

/// Removes the namespaces and devices of processes that were killed before they could do it.
fn remove_those_of(is_gone: impl Fn(u32) -> bool) {
    let left = |folder: &str, around: [&str; 2]| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let of_gone = |name: &String| process_of(name, around).is_some_and(&is_gone);
        names.filter(of_gone).collect::<Vec<_>>()
    };
    // A namespace lives as long as a program in it does, so its way out is taken away by itself.
    let devices = left(DEVICES, ["wf", "h"]);
    let devices = devices.iter().map(|name| ip(&["link", "delete", name]));
    let namespaces = left(NAMESPACES, ["weft-", "-"]);
    let namespaces = namespaces.iter().map(|name| ip(&["netns", "delete", name]));
    for error in devices.chain(namespaces).filter_map(Result::err) {
        eprintln!("{error}");
    }
}

/// The process whose a namespace or a device is, from what stands before and after the number
/// in its name.
fn process_of(name: &str, [before, after]: [&str; 2]) -> Option<u32> {
    let (number, _) = name.strip_prefix(before)?.split_once(after)?;
    number.parse().ok()
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

#[tokio::test]
async fn what_a_killed_process_left_is_removed_and_nothing_else() {
    assert_eq!(process_of("weft-1234-0", ["weft-", "-"]), Some(1234));
    assert_eq!(process_of("wf1234h0", ["wf", "h"]), Some(1234));
    for other in ["eth0", "wf0", "wfh1", "wf1n0", "wfxh0"] {
        assert_eq!(process_of(other, ["wf", "h"]), None, "{other}");
    }
    // Others remove the same when they begin.
    let _machine = super::machine().await;
    let mut killed = Command::new("true").spawn().expect("it can be run");
    let gone = killed.id();
    killed.wait().expect("it is our child");
    let (namespace, device) = (format!("weft-{gone}-0"), format!("wf{gone}h0"));
    let peer = device.replace('h', "n");
    let made = ip(&["netns", "add", &namespace])
        .and_then(|()| ip(&["link", "add", &device, "type", "veth", "peer", "name", &peer]));
    let there = || {
        let [namespaces, devices] = [NAMESPACES, DEVICES].map(Path::new);
        [namespaces.join(&namespace), devices.join(&device), devices.join(&peer)]
            .map(|path| path.exists())
    };
    let before = there();
    remove_those_of(|of| of == gone);
    assert_eq!(there(), [false; 3]);
    match made {
        Ok(()) => assert_eq!(before, [true; 3], "in {NAMESPACES} and {DEVICES}"),
        Err(reason) => println!("SKIPPED: {reason}"),
    }
}
