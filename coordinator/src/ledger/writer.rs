//! The task that writes: whatever waits, in one transaction, again and again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use protocol::WorkerId;
use sqlx::{Row, SqliteConnection};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::pending::{Change, Leaving, Pending, Visit};
use super::workers::{VISITS_MAX, forget, kind_name};
use super::{BANS_WATCHED_MAX, Record, Shared, seconds, signed};

/// Between batches, at least.
const BATCH_EVERY: Duration = Duration::from_millis(100);
/// Between tries while the disk takes nothing.
const RETRY_EVERY: Duration = Duration::from_secs(2);
/// Between countings of how long workers are here: what a `kill -9` takes from it.
const PRESENT_EVERY: Duration = Duration::from_secs(10);
/// Between looks whether an operator revoked an invite or lifted a ban.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How far back such a look goes: more than a transaction takes.
const LOOK_BACK_S: i64 = 60;
/// Joins between looks whether too many workers are remembered.
const JOINS_PER_FORGETTING: u64 = 1024;

/// Writes until the ledger is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut writer = Writer { shared, visits: BTreeMap::new(), joins: 0, failing_since: None };
    let every = |period| {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    };
    let (mut present, mut look) = (every(PRESENT_EVERY), every(LOOK_EVERY));
    let closing = writer.shared.closing.clone();
    loop {
        tokio::select! {
            () = closing.cancelled() => return,
            _ = present.tick() => writer.shared.count_presence(),
            _ = look.tick() => {
                writer.shared.look_for_revoked().await;
                writer.shared.look_for_lifted().await;
                continue;
            }
            () = writer.shared.work.notified() => {}
        }
        let wait = if writer.write_pending().await { BATCH_EVERY } else { RETRY_EVERY };
        tokio::select! {
            () = sleep(wait) => {}
            () = closing.cancelled() => return,
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    /// Rows of the visits of workers that are here.
    visits: BTreeMap<WorkerId, i64>,
    /// Since too many workers were last looked for.
    joins: u64,
    failing_since: Option<Instant>,
}

/// What a transaction did, to be believed once it is committed.
#[derive(Default)]
struct Done {
    records: BTreeMap<String, Record>,
    opened: BTreeMap<WorkerId, i64>,
}

impl Writer {
    /// Writes what waits; false if it could not, and waits again.
    async fn write_pending(&mut self) -> bool {
        let (batch, number) = {
            let mut state = self.shared.state();
            let batch = Arc::new(std::mem::take(&mut state.pending));
            state.batch += 1;
            state.writing = Some(batch.clone());
            (batch, state.batch)
        };
        let done = match batch.is_empty() {
            true => Ok(Done::default()),
            false => self.write(&batch).await,
        };
        match done {
            Ok(done) => {
                if let Some(since) = self.failing_since.take() {
                    let seconds = since.elapsed().as_secs();
                    tracing::info!(seconds, "the database is written again, nothing is lost");
                }
                self.joins += batch.joins.len() as u64;
                self.visits.extend(done.opened);
                for gone in &batch.leaves {
                    self.visits.remove(&gone.worker);
                }
                self.shared.publish(&done.records);
                self.shared.written.send_replace(number);
                true
            }
            Err(error) => {
                if self.failing_since.is_none() {
                    self.failing_since = Some(Instant::now());
                    tracing::error!("the database cannot be written, trying on: {error}");
                }
                let mut state = self.shared.state();
                state.writing = None;
                state.pending.put_back(Arc::unwrap_or_clone(batch));
                drop(state);
                self.shared.work.notify_one();
                false
            }
        }
    }

    async fn write(&mut self, batch: &Pending) -> Result<Done, sqlx::Error> {
        let now_s = seconds(SystemTime::now());
        let mut done = Done::default();
        let mut transaction = self.shared.pool.begin_with("BEGIN IMMEDIATE").await?;
        for (key, change) in &batch.changes {
            let record = write_change(&mut transaction, key, change, now_s).await?;
            done.records.extend(record.map(|record| (key.clone(), record)));
        }
        let mut newest = 0;
        for visit in &batch.joins {
            newest = open_visit(&mut transaction, visit).await?;
            done.opened.insert(visit.worker, newest);
        }
        for leaving in &batch.leaves {
            let id = done.opened.get(&leaving.worker).or(self.visits.get(&leaving.worker));
            if let Some(&id) = id {
                close_visit(&mut transaction, id, leaving).await?;
            }
        }
        if newest > VISITS_MAX {
            let forgetting = sqlx::query("DELETE FROM visits WHERE id <= ?1");
            forgetting.bind(newest - VISITS_MAX).execute(&mut *transaction).await?;
        }
        if self.joins >= JOINS_PER_FORGETTING {
            forget(&mut transaction).await?;
            self.joins = 0;
        }
        transaction.commit().await?;
        Ok(done)
    }
}

impl Shared {
    /// Notes that everyone who is here has been here until now.
    fn count_presence(&self) {
        let now = SystemTime::now();
        let mut state = self.state();
        let state = &mut *state;
        for here in state.here.values_mut() {
            let present = here.present(now);
            state.pending.add(&here.key, present);
        }
    }

    /// Tells what was committed.
    fn publish(&self, records: &BTreeMap<String, Record>) {
        let mut state = self.state();
        let state = &mut *state;
        state.writing = None;
        for (key, record) in records {
            if record.ban.is_some() && state.watched.len() < BANS_WATCHED_MAX {
                state.watched.insert(key.clone());
            }
        }
        for here in state.here.values_mut() {
            if let Some(record) = records.get(&here.key) {
                here.record = record.clone();
            }
        }
    }

    /// Looks which bans an operator has lifted.
    async fn look_for_lifted(&self) {
        let watched: Vec<String> = self.state().watched.iter().cloned().collect();
        if watched.is_empty() {
            return;
        }
        // Keys are hex: nothing in them is to be escaped.
        let list = format!("[\"{}\"]", watched.join("\",\""));
        let looking = sqlx::query_scalar::<_, String>(
            "SELECT workers.key FROM json_each(?1) AS watched \
             JOIN workers ON workers.key = watched.value WHERE banned_s IS NULL",
        );
        match looking.bind(list).fetch_all(&self.pool).await {
            Ok(lifted) if lifted.is_empty() => {}
            Ok(lifted) => {
                let mut state = self.state();
                for key in &lifted {
                    state.watched.remove(key);
                }
                state.lifted.extend(lifted);
                drop(state);
                self.lifted.notify_one();
            }
            Err(error) => tracing::warn!("the database cannot be read: {error}"),
        }
    }

    /// Looks which invites an operator has revoked, and sends away whom that concerns.
    async fn look_for_revoked(&self) {
        if self.state().here.is_empty() {
            return;
        }
        let since = seconds(SystemTime::now()) - LOOK_BACK_S;
        let found = async {
            let revoked = sqlx::query("SELECT id FROM invites WHERE revoked_s >= ?1").bind(since);
            let revoked = revoked.fetch_all(&self.pool).await?;
            revoked.iter().map(|row| row.try_get::<i64, _>("id")).collect()
        };
        let revoked: Result<Vec<i64>, sqlx::Error> = found.await;
        match revoked {
            Ok(revoked) if revoked.is_empty() => {}
            Ok(revoked) => {
                for here in self.state().here.values() {
                    if here.invite.is_some_and(|invite| revoked.contains(&invite)) {
                        let reason = "its invite was revoked: ask the operator for another one";
                        here.sent_away.send_replace(Some(reason.into()));
                    }
                }
            }
            Err(error) => tracing::warn!("the database cannot be read: {error}"),
        }
    }
}

async fn write_change(
    connection: &mut SqliteConnection,
    key: &str,
    change: &Change,
    now_s: i64,
) -> Result<Option<Record>, sqlx::Error> {
    let Change { joined, delta, audited, banned, banned_because } = change;
    let (name, kind) = match joined {
        Some((name, kind)) => (Some(name.as_str()), Some(kind_name(*kind))),
        None => (None, None),
    };
    // A key that never joined is the embedded worker's, which is new at every start.
    let row = sqlx::query(
        "INSERT INTO workers (key, name, kind, first_seen_s, last_seen_s, present_ms, rows, \
         credit, agreements, disagreements, banned_s, banned_because) \
         SELECT ?1, coalesce(?2, ''), coalesce(?3, 'native'), ?4, ?4, ?5, ?6, ?7, \
         coalesce(?8, 0), coalesce(?9, 0), iif(?10, ?4, NULL), ?11 \
         WHERE ?2 IS NOT NULL OR EXISTS (SELECT 1 FROM workers WHERE key = ?1) \
         ON CONFLICT (key) DO UPDATE SET name = coalesce(?2, name), kind = coalesce(?3, kind), \
         last_seen_s = ?4, present_ms = present_ms + ?5, rows = rows + ?6, \
         credit = credit + ?7, agreements = coalesce(?8, agreements), \
         disagreements = coalesce(?9, disagreements), \
         banned_s = coalesce(banned_s, excluded.banned_s), \
         banned_because = coalesce(?11, banned_because) RETURNING *",
    )
    .bind(key)
    .bind(name)
    .bind(kind)
    .bind(now_s)
    .bind(signed(delta.present_ms))
    .bind(signed(delta.rows))
    .bind(signed(delta.credit))
    .bind(audited.map(|(agreements, _)| agreements))
    .bind(audited.map(|(_, disagreements)| disagreements))
    .bind(banned)
    .bind(banned_because.as_deref())
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(Record::of).transpose()
}

async fn open_visit(connection: &mut SqliteConnection, visit: &Visit) -> Result<i64, sqlx::Error> {
    let Visit { worker: _, key, kind, joined_s } = visit;
    let opening = sqlx::query("INSERT INTO visits (key, kind, joined_s) VALUES (?1, ?2, ?3)");
    let opened = opening.bind(key).bind(kind_name(*kind)).bind(joined_s);
    Ok(opened.execute(connection).await?.last_insert_rowid())
}

async fn close_visit(
    connection: &mut SqliteConnection,
    id: i64,
    leaving: &Leaving,
) -> Result<(), sqlx::Error> {
    let Leaving { worker: _, left_s, reason } = leaving;
    let closing = sqlx::query("UPDATE visits SET left_s = ?1, reason = ?2 WHERE id = ?3");
    closing.bind(left_s).bind(reason).bind(id).execute(connection).await.map(drop)
}
