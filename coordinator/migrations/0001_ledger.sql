-- What the coordinator keeps of workers and invites. Times are seconds since 1970.

CREATE TABLE workers (
    key                 TEXT    NOT NULL PRIMARY KEY, -- Ed25519 public key, hex
    name                TEXT    NOT NULL,
    kind                TEXT    NOT NULL,             -- native, browser
    first_seen_s        INTEGER NOT NULL,
    last_seen_s         INTEGER NOT NULL,
    present_ms          INTEGER NOT NULL DEFAULT 0,   -- connected, all visits together
    rows                INTEGER NOT NULL DEFAULT 0,   -- computed
    credit              INTEGER NOT NULL DEFAULT 0,   -- rows x layers that were verified
    agreements          INTEGER NOT NULL DEFAULT 0,   -- audits in a row that agreed
    disagreements       INTEGER NOT NULL DEFAULT 0,   -- that did not, and were not made good
    banned_s            INTEGER,
    banned_because      TEXT
) STRICT;
CREATE INDEX workers_by_last_seen ON workers (last_seen_s);
CREATE INDEX workers_banned ON workers (banned_s) WHERE banned_s IS NOT NULL;

CREATE TABLE visits (
    id       INTEGER NOT NULL PRIMARY KEY,
    key      TEXT    NOT NULL,
    kind     TEXT    NOT NULL,
    joined_s INTEGER NOT NULL,
    left_s   INTEGER,           -- none: it is here, or the coordinator was killed
    reason   TEXT               -- why it left
) STRICT;
CREATE INDEX visits_open ON visits (joined_s) WHERE left_s IS NULL;

CREATE TABLE invites (
    id         INTEGER NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL,
    token_hash BLOB    NOT NULL UNIQUE, -- SHA-256; the token itself is not kept
    created_s  INTEGER NOT NULL,
    expires_s  INTEGER,                 -- until when it may be used for the first time
    key        TEXT,                    -- the worker that used it first, and it alone
    used_s     INTEGER,
    revoked_s  INTEGER
) STRICT;
CREATE INDEX invites_revoked ON invites (revoked_s) WHERE revoked_s IS NOT NULL;
