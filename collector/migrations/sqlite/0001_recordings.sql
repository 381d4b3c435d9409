-- The index of the embedded collector. Ids and hashes are BLOBs; *_ns are nanoseconds, *_ms milliseconds;
-- "unix" is wall clock, "boot" is the node's CLOCK_BOOTTIME (the order inside one run, whatever the wall clock did).
-- Content that must go with retention lives in: run (labels, argv), session (facts, process), exchange, gap, segment.

-- One row: who this collector is, and small facts of its own.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE node (
    id                 BLOB PRIMARY KEY,
    name               TEXT NOT NULL,
    signing_key        BLOB NOT NULL UNIQUE,      -- ed25519, pinned at enrolment
    join_token         BLOB,                      -- hash of the token it came with: the same enrolment may be repeated
    enrolled_ms        INTEGER NOT NULL,
    revoked_ms         INTEGER,
    last_seen_ms       INTEGER NOT NULL DEFAULT 0,
    agent_version      TEXT NOT NULL DEFAULT '',
    log_entries        INTEGER NOT NULL DEFAULT 0,
    log_head           BLOB NOT NULL DEFAULT x'', -- hash of the last entry
    next_number        INTEGER NOT NULL DEFAULT 1,
    spooled_segments   INTEGER NOT NULL DEFAULT 0,
    spooled_bytes      INTEGER NOT NULL DEFAULT 0,
    unobserved         INTEGER NOT NULL DEFAULT 0,
    clock_synchronized INTEGER NOT NULL DEFAULT 0,
    alerts             INTEGER NOT NULL DEFAULT 0 -- all there were, also those no longer kept as rows
) STRICT;

CREATE TABLE node_entry (
    node_id     BLOB NOT NULL REFERENCES node (id),
    idx         INTEGER NOT NULL,
    hash        BLOB NOT NULL,
    unix_ns     INTEGER NOT NULL,
    signed      BLOB NOT NULL,                    -- encoded SignedNodeEntry, as it came
    received_ms INTEGER NOT NULL,
    PRIMARY KEY (node_id, idx)
) STRICT, WITHOUT ROWID;

CREATE TABLE run (
    id                   BLOB PRIMARY KEY,
    node_id              BLOB NOT NULL REFERENCES node (id),
    parent               BLOB,                    -- run that started it, perhaps on another node
    principal_issuer     TEXT NOT NULL DEFAULT '',
    principal_subject    TEXT NOT NULL DEFAULT '',
    principal_groups     TEXT NOT NULL DEFAULT '[]', -- JSON
    principal_verified_by TEXT NOT NULL DEFAULT '',  -- '' = unverified
    principal_expires_ms INTEGER NOT NULL DEFAULT 0,
    initiator            TEXT NOT NULL DEFAULT '',
    argv                 TEXT NOT NULL DEFAULT '[]', -- JSON
    host                 TEXT NOT NULL DEFAULT '',
    started_boot_ns      INTEGER NOT NULL DEFAULT 0,
    first_unix_ns        INTEGER NOT NULL,
    last_unix_ns         INTEGER NOT NULL
) STRICT;
CREATE INDEX run_by_time ON run (first_unix_ns, id);
CREATE INDEX run_by_node ON run (node_id, first_unix_ns);
CREATE INDEX run_by_principal ON run (principal_subject, first_unix_ns);
CREATE INDEX run_by_parent ON run (parent) WHERE parent IS NOT NULL;

CREATE TABLE run_label (
    run_id BLOB NOT NULL REFERENCES run (id),
    key    TEXT NOT NULL,
    value  TEXT NOT NULL,
    PRIMARY KEY (run_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX run_label_by_value ON run_label (key, value, run_id);

CREATE TABLE session (
    id                BLOB PRIMARY KEY,
    run_id            BLOB NOT NULL REFERENCES run (id),
    node_id           BLOB NOT NULL REFERENCES node (id),
    node_number       INTEGER NOT NULL,
    protocol          TEXT NOT NULL DEFAULT '',
    protocol_version  TEXT NOT NULL DEFAULT '',
    origin_ip         TEXT NOT NULL DEFAULT '',
    origin_port       INTEGER NOT NULL DEFAULT 0,
    target            TEXT NOT NULL DEFAULT '',
    process           BLOB NOT NULL DEFAULT x'',   -- encoded Process
    opened_boot_ns    INTEGER NOT NULL,
    opened_unix_ns    INTEGER NOT NULL,
    closed_unix_ns    INTEGER NOT NULL DEFAULT 0,
    closed            INTEGER NOT NULL DEFAULT 0,
    coverage          INTEGER NOT NULL DEFAULT 0,  -- enum Coverage
    reason            TEXT NOT NULL DEFAULT '',
    cause             TEXT NOT NULL DEFAULT '',
    rule              TEXT NOT NULL DEFAULT '',    -- that refused the connection itself
    facts             TEXT NOT NULL DEFAULT '{}',  -- JSON
    exchanges         INTEGER NOT NULL DEFAULT 0,
    denied            INTEGER NOT NULL DEFAULT 0,
    gaps              INTEGER NOT NULL DEFAULT 0,
    request_bytes     INTEGER NOT NULL DEFAULT 0,
    response_bytes    INTEGER NOT NULL DEFAULT 0,
    next_seq          INTEGER NOT NULL DEFAULT 0,  -- segments ever accepted
    head_hash         BLOB NOT NULL,               -- of the last of them
    retention_class   TEXT NOT NULL DEFAULT 'default',
    legal_hold        INTEGER NOT NULL DEFAULT 0,
    expired_seq       INTEGER NOT NULL DEFAULT 0,  -- segments below were deleted by retention: the row stays as their tombstone
    expired_ms        INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX session_by_run ON session (run_id, opened_boot_ns, id);
CREATE INDEX session_by_number ON session (node_id, node_number);
CREATE INDEX session_by_target ON session (target, opened_unix_ns);

-- A rowid of its own, so that a full-text table can take its content from here.
CREATE TABLE exchange (
    id            INTEGER PRIMARY KEY,
    session_id    BLOB NOT NULL REFERENCES session (id),
    ordinal       INTEGER NOT NULL,
    run_id        BLOB NOT NULL,
    node_id       BLOB NOT NULL,
    protocol      TEXT NOT NULL,
    target        TEXT NOT NULL,
    verb          TEXT NOT NULL,
    statement     TEXT NOT NULL,                   -- Operation.text; kept here only, not again in `finished`
    error         TEXT NOT NULL DEFAULT '',
    asked_boot_ns INTEGER NOT NULL,
    asked_unix_ns INTEGER NOT NULL,
    done          INTEGER NOT NULL DEFAULT 0,
    outcome       INTEGER NOT NULL DEFAULT 0,      -- enum Outcome
    status        TEXT NOT NULL DEFAULT '',
    rows          INTEGER NOT NULL DEFAULT 0,
    duration_ns   INTEGER NOT NULL DEFAULT 0,
    finished      BLOB NOT NULL,                   -- encoded Finished without the text
    UNIQUE (session_id, ordinal)
) STRICT;
CREATE INDEX exchange_by_run ON exchange (run_id, asked_boot_ns, session_id, ordinal);
CREATE INDEX exchange_by_time ON exchange (asked_unix_ns);

CREATE TABLE gap (
    session_id BLOB NOT NULL REFERENCES session (id),
    seq        INTEGER NOT NULL,                   -- segment it is in
    place      INTEGER NOT NULL,                   -- event of that segment
    run_id     BLOB NOT NULL,
    boot_ns    INTEGER NOT NULL,
    unix_ns    INTEGER NOT NULL,
    gap        BLOB NOT NULL,                      -- encoded Gap
    PRIMARY KEY (session_id, seq, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX gap_by_run ON gap (run_id, boot_ns);

CREATE TABLE bundle (
    id         INTEGER PRIMARY KEY,
    key        TEXT NOT NULL UNIQUE,               -- object key
    bytes      INTEGER NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE segment (
    session_id     BLOB NOT NULL REFERENCES session (id),
    seq            INTEGER NOT NULL,
    bundle         INTEGER NOT NULL REFERENCES bundle (id),
    at             INTEGER NOT NULL,               -- offset in the bundle
    len            INTEGER NOT NULL,
    hash           BLOB NOT NULL,
    prev_hash      BLOB NOT NULL,
    signature      BLOB NOT NULL,
    generation     BLOB NOT NULL,
    first_boot_ns  INTEGER NOT NULL,
    last_boot_ns   INTEGER NOT NULL,
    wall_unix_ns   INTEGER NOT NULL,               -- the segment's clock anchor
    wall_boot_ns   INTEGER NOT NULL,
    events         INTEGER NOT NULL,
    received_ms    INTEGER NOT NULL,
    receipt        BLOB NOT NULL,                  -- signature over (session, seq, hash, received)
    PRIMARY KEY (session_id, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX segment_by_bundle ON segment (bundle);
CREATE INDEX segment_by_age ON segment (received_ms);

-- How agents wrapped their generation keys, and the collector's own halves.
CREATE TABLE wrap (
    node_id     BLOB NOT NULL REFERENCES node (id),
    generation  BLOB NOT NULL,
    key_id      BLOB NOT NULL REFERENCES hpke_key (id),
    enc         BLOB NOT NULL,
    ciphertext  BLOB NOT NULL,
    received_ms INTEGER NOT NULL,
    PRIMARY KEY (node_id, generation)
) STRICT, WITHOUT ROWID;
CREATE INDEX wrap_by_key ON wrap (key_id);

CREATE TABLE hpke_key (
    id         BLOB PRIMARY KEY,
    class      TEXT NOT NULL,
    day        INTEGER NOT NULL,                   -- days since 1970-01-01 UTC
    public_key BLOB NOT NULL,
    wrapped    BLOB NOT NULL,                      -- private key under the key-encryption key
    UNIQUE (class, day)
) STRICT, WITHOUT ROWID;

-- A session's key, wrapped again for this session alone: deleting the row shreds the session.
CREATE TABLE session_key (
    session_id BLOB NOT NULL REFERENCES session (id),
    generation BLOB NOT NULL,
    wrapped    BLOB NOT NULL,
    PRIMARY KEY (session_id, generation)
) STRICT, WITHOUT ROWID;

CREATE TABLE join_token (
    hash         BLOB PRIMARY KEY,                 -- SHA-256 of the secret
    uses_left    INTEGER NOT NULL CHECK (uses_left >= 0),
    expires_ms   INTEGER NOT NULL,
    name_pattern TEXT NOT NULL,
    created_ms   INTEGER NOT NULL,
    created_by   TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE credential (
    hash       BLOB PRIMARY KEY,                   -- SHA-256 of the secret
    name       TEXT NOT NULL UNIQUE,
    role       TEXT NOT NULL CHECK (role IN ('admin', 'viewer')),
    created_ms INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    revoked_ms INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE access_log (
    id      INTEGER PRIMARY KEY,
    unix_ms INTEGER NOT NULL,
    who     TEXT NOT NULL,                         -- '' = no valid credential
    call    TEXT NOT NULL,
    subject TEXT NOT NULL,
    allowed INTEGER NOT NULL,
    times   INTEGER NOT NULL DEFAULT 1
) STRICT;
-- Calls without a credential are counted by minute: a stranger must not be able to fill the disk.
CREATE UNIQUE INDEX access_log_strangers ON access_log (call, unix_ms) WHERE who = '';
CREATE INDEX access_log_by_time ON access_log (unix_ms);

CREATE TABLE alert (
    id         INTEGER PRIMARY KEY,
    unix_ms    INTEGER NOT NULL,
    node_id    BLOB NOT NULL REFERENCES node (id),
    session_id BLOB,
    seq        INTEGER,
    kind       TEXT NOT NULL,
    detail     TEXT NOT NULL
) STRICT;
CREATE INDEX alert_by_node ON alert (node_id, id);
CREATE INDEX alert_by_session ON alert (session_id) WHERE session_id IS NOT NULL;
