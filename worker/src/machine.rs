//! What this machine has to lend.

use std::fs;
use std::path::{Path, PathBuf};

/// Lent where the operating system does not say what is available.
pub const MEMORY_BYTES_UNKNOWN: u64 = 2 << 30;

/// Threads that may run at once, control groups and affinity considered.
pub fn threads() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1))
}

/// How fast the CPU works through weights: see [`shards::benchmark::bytes_per_s`].
///
/// # Errors
/// The engine does not run here; why, in words.
pub fn bytes_per_s(threads: u32) -> Result<[f64; 2], String> {
    let start = std::time::Instant::now();
    shards::benchmark::bytes_per_s(threads, || start.elapsed().as_secs_f64())
}

/// The machine's name, for people.
pub fn name() -> String {
    let from_file = || fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let from_env = || std::env::var("HOSTNAME").or_else(|_| std::env::var("COMPUTERNAME")).ok();
    let name = from_file().or_else(from_env).unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| !c.is_control()).take(64).collect();
    if name.is_empty() { "worker".into() } else { name }
}

/// The processor's name, for people; empty where the system does not say.
pub fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name"));
    name.and_then(|rest| rest.split_once(':')).map_or(String::new(), |(_, name)| name.trim().into())
}

/// Memory that can be had now, bytes: what the system calls available, or what the control
/// groups of this process leave, if that is less; `None` where neither can be read.
pub fn memory_available() -> Option<u64> {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group_left(Path::new("/sys/fs/cgroup"), &groups);
    system.into_iter().chain(group).min()
}

/// `MemAvailable` of `/proc/meminfo`, bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the tightest control group leaves, bytes: of the process's own group and of those
/// above it, version 2 or 1, under `root`.
fn group_left(root: &Path, proc_self_cgroup: &str) -> Option<u64> {
    let mut least = None;
    for line in proc_self_cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (base, max, used) = if controllers.is_empty() {
            (root.to_path_buf(), "memory.max", "memory.current")
        } else if controllers.split(',').any(|c| c == "memory") {
            (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes")
        } else {
            continue;
        };
        let mut group: PathBuf = base.join(path.trim_start_matches('/'));
        while group.starts_with(&base) {
            let number = |file| fs::read_to_string(group.join(file)).ok()?.trim().parse().ok();
            let left = Option::zip(number(max), number(used))
                .map(|(m, u): (u64, u64)| m.saturating_sub(u));
            least = least.into_iter().chain(left).min();
            if !group.pop() {
                break;
            }
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:  16000 kB\nMemFree: 1 kB\nMemAvailable:    9000 kB\n";
        assert_eq!(available(text), Some(9000 * 1024));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn the_tightest_control_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(inner.join("memory.current"), "5\n").unwrap();
        fs::write(root.path().join("a/memory.max"), "1000\n").unwrap();
        fs::write(root.path().join("a/memory.current"), "400\n").unwrap();
        assert_eq!(group_left(root.path(), "0::/a/b\n"), Some(600));
        assert_eq!(group_left(root.path(), "0::/\n"), None);
        let old = root.path().join("memory/box");
        fs::create_dir_all(&old).unwrap();
        fs::write(old.join("memory.limit_in_bytes"), "300\n").unwrap();
        fs::write(old.join("memory.usage_in_bytes"), "400\n").unwrap();
        assert_eq!(group_left(root.path(), "4:cpu:/box\n3:memory:/box\n0::/a\n"), Some(0));
    }
}
