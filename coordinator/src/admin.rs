//! `coordinator invite`, `invites`, `revoke`, `workers`, `unban`: what an operator says and asks
//! about workers. They work on the database itself, so the coordinator may run or not; one that
//! runs sees a change within seconds.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};

use crate::ledger::{FILE, Invite, Ledger, Record};
use crate::store::Home;

/// Characters of an invite's name at most.
const NAME_CHARS_MAX: usize = 100;
/// Workers that `coordinator workers` shows at most.
const SHOWN_MAX: u32 = 1000;
/// Characters of a key that `coordinator unban` needs at least.
const KEY_CHARS_MIN: usize = 8;

/// How long an invite may wait to be used for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expires {
    /// For so long.
    Within(Duration),
    /// For ever.
    Never,
}

impl std::str::FromStr for Expires {
    type Err = String;

    fn from_str(text: &str) -> Result<Expires, String> {
        if text == "never" {
            return Ok(Expires::Never);
        }
        let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
        let split = units.iter().find_map(|(unit, s)| Some((text.strip_suffix(unit)?, *s)));
        let seconds = split
            .and_then(|(number, s)| number.parse::<u64>().ok()?.checked_mul(s))
            .filter(|seconds| (1..=100 * 365 * 86_400).contains(seconds));
        match seconds {
            Some(seconds) => Ok(Expires::Within(Duration::from_secs(seconds))),
            None => Err("a number and s, m, h or d is expected (30d, 12h), or `never`".into()),
        }
    }
}

/// The database of a coordinator that has run: none is made where somebody looks for one.
async fn open(home: Option<PathBuf>) -> anyhow::Result<Ledger> {
    Ok(Ledger::open_existing(&Home::locate(home)?).await?)
}

/// Makes an invite and prints its token, once.
///
/// # Errors
/// The database cannot be used, or the name is too long.
pub async fn invite(home: Option<PathBuf>, name: &str, expires: Expires) -> anyhow::Result<()> {
    if name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        bail!("--name: at most {NAME_CHARS_MAX} characters are possible, without line breaks");
    }
    let until = match expires {
        Expires::Within(time) => Some(SystemTime::now() + time),
        Expires::Never => None,
    };
    // Invites may be made before the coordinator runs for the first time.
    let home = Home::open(home)?;
    let invited = Ledger::open_quietly(home.root()).await?.invite(name, until).await?;
    // The token alone on its line, for programs; the rest is for people.
    println!("{}", invited.token);
    eprintln!(
        "invite {} is shown this once. On the machine that you trust with text:\n  \
         worker --coordinator ws://ADDRESS:PORT --invite {}\n\
         It is good for one worker, the first that uses it, of the coordinator that keeps {}\n\
         Take it back with: coordinator revoke {}",
        invited.id,
        invited.token,
        home.root().join(FILE).display(),
        invited.id
    );
    Ok(())
}

/// Prints all invites.
///
/// # Errors
/// The database cannot be used.
pub async fn invites(home: Option<PathBuf>) -> anyhow::Result<()> {
    let invites = open(home).await?.invites().await?;
    print!("{}", invites_table(&invites, now_s()));
    Ok(())
}

/// Takes an invite back.
///
/// # Errors
/// The database cannot be used, or there is no such invite in force.
pub async fn revoke(home: Option<PathBuf>, id: i64) -> anyhow::Result<()> {
    if !open(home).await?.revoke(id).await? {
        bail!("there is no invite {id}, or it was revoked before: see `coordinator invites`");
    }
    println!("invite {id} is revoked; a worker that came with it is sent away within seconds");
    Ok(())
}

/// Prints who is remembered.
///
/// # Errors
/// The database cannot be used.
pub async fn workers(home: Option<PathBuf>) -> anyhow::Result<()> {
    let ledger = open(home).await?;
    let (records, all) = (ledger.records(SHOWN_MAX).await?, ledger.records_count().await?);
    print!("{}", workers_table(&records, all, now_s()));
    Ok(())
}

/// Lets a banned key in again.
///
/// # Errors
/// The database cannot be used, or the key is not banned, or not told from others.
pub async fn unban(home: Option<PathBuf>, key: &str) -> anyhow::Result<()> {
    if key.len() < KEY_CHARS_MIN {
        bail!("KEY: at least the first {KEY_CHARS_MIN} characters are needed, see `workers`");
    }
    let ledger = open(home).await?;
    let records = ledger.records(u32::MAX).await?;
    let banned = |record: &&Record| record.ban.is_some() && record.key.starts_with(key);
    let found: Vec<&Record> = records.iter().filter(banned).collect();
    let record = match found[..] {
        [record] => record,
        [] => bail!("no banned key begins with `{key}`: see `coordinator workers`"),
        _ => bail!("{} banned keys begin with `{key}`: say more of it", found.len()),
    };
    ledger.unban(&record.key).await.context("lifting the ban")?;
    println!(
        "{} ({}) may come back: start it again; a coordinator that runs lets it in within seconds",
        record.key, record.name
    );
    Ok(())
}

fn invites_table(invites: &[Invite], now_s: u64) -> String {
    if invites.is_empty() {
        return "no invites; `coordinator invite` makes one\n".into();
    }
    let mut table = format!("{:>5}  {:8} {:14} {:16} NAME\n", "ID", "STATE", "MADE", "KEY");
    for invite in invites {
        let key = invite.key.as_deref().map_or("-", |key| &key[..key.len().min(16)]);
        let made = ago(now_s, invite.created_s);
        let state = invite.state(now_s);
        let _ = writeln!(table, "{:>5}  {state:8} {made:14} {key:16} {}", invite.id, invite.name);
    }
    table
}

/// The table of `records`, of `all` that there are.
fn workers_table(records: &[Record], all: u64, now_s: u64) -> String {
    if records.is_empty() {
        return "no worker was here yet\n".into();
    }
    let mut table = format!(
        "{:16} {:8} {:14} {:>10} {:>12} {:>12} {:>11}  NAME\n",
        "KEY", "KIND", "SEEN", "PRESENT", "ROWS", "CREDIT", "AUDITS"
    );
    for record in records {
        let key = &record.key[..record.key.len().min(16)];
        let kind = crate::ledger::kind_name(record.kind);
        let seen = ago(now_s, record.last_seen_s);
        let present = length(record.present_ms / 1000);
        let audits = format!("{}+ {}-", record.agreements, record.disagreements);
        let _ = write!(
            table,
            "{key:16} {kind:8} {seen:14} {present:>10} {:>12} {:>12} {audits:>11}  {}",
            record.rows, record.credit, record.name
        );
        if let Some(ban) = &record.ban {
            let _ = write!(table, "  BANNED {}: {}", ago(now_s, ban.since_s), ban.because);
        }
        table.push('\n');
    }
    let more = all.saturating_sub(records.len() as u64);
    if more > 0 {
        let _ = writeln!(table, "… and {more} more, with less credit");
    }
    table
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn ago(now_s: u64, then_s: u64) -> String {
    format!("{} ago", length(now_s.saturating_sub(then_s)))
}

/// Seconds in the unit that people would choose.
fn length(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_a_number_and_a_unit() {
        let within = |seconds| Ok(Expires::Within(Duration::from_secs(seconds)));
        assert_eq!("30d".parse(), within(30 * 86_400));
        assert_eq!("12h".parse(), within(12 * 3600));
        assert_eq!("90m".parse(), within(5400));
        assert_eq!("1s".parse(), within(1));
        assert_eq!("never".parse(), Ok(Expires::Never));
        for wrong in ["", "d", "30", "0d", "-1d", "1w", "1.5h", "99999999999999999999d", "ü"] {
            assert!(wrong.parse::<Expires>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_table_that_is_cut_says_so() {
        let record = Record {
            key: "cd".repeat(32),
            name: "shed".into(),
            kind: protocol::WorkerKind::Native,
            first_seen_s: 0,
            last_seen_s: 900,
            present_ms: 5000,
            rows: 7,
            credit: 3,
            agreements: 0,
            disagreements: 0,
            ban: None,
        };
        let all = workers_table(std::slice::from_ref(&record), 1, 1000);
        assert!(all.contains("shed") && !all.contains("more"), "{all}");
        let cut = workers_table(&[record], 5, 1000);
        assert!(cut.ends_with("… and 4 more, with less credit\n"), "{cut}");
    }

    #[test]
    fn invites_are_listed_with_what_became_of_them() {
        let open = Invite {
            id: 3,
            name: "garage".into(),
            created_s: 1000,
            expires_s: Some(5000),
            key: None,
            used_s: None,
            revoked_s: None,
        };
        let used = Invite { id: 2, key: Some("ab".repeat(32)), used_s: Some(1500), ..open.clone() };
        let revoked = Invite { id: 1, revoked_s: Some(1600), ..used.clone() };
        let states = |now_s| [&open, &used, &revoked].map(|invite| invite.state(now_s));
        assert_eq!(states(4999), ["open", "used", "revoked"]);
        assert_eq!(states(5000), ["expired", "used", "revoked"]);
        let table = invites_table(&[open.clone(), used.clone()], 2000);
        assert!(table.contains("garage") && table.contains("abababababababab "), "{table}");
        assert!(!table.contains(&"ab".repeat(9)), "a key is cut: {table}");
    }
}
