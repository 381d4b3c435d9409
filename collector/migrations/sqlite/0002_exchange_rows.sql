-- Small exchange rows, in the order of arrival.
--
-- Everything that an exchange shares with its neighbours lives in its segment: session, run, principal, protocol, clock anchor,
-- and the `shapes` (kind, columns) its rows refer to. So exchanges have no index but their id; the indices are on segments,
-- a hundredth of the rows:
--
--   exchange.id, segment.id   counted up for ever, never used twice; exchange ids ascend with segment ids. One order for every
--                             list: newest arrival first is ORDER BY id DESC, a cursor is an id, and stays right under writes.
--   of one segment            exchange.id >= segment.first_exchange AND exchange.id < segment.first_exchange + segment.exchanges
--                             (a row in the range may be gone: an exchange that finished later has moved to that later segment)
--   of a run, a principal     walk segment_by_run / segment_by_principal by id DESC, join the exchanges of each
--   of a session              segment (session_id, seq)
--   asked at (unix)           exchange.asked_boot_ns + segment.wall_unix_ns - segment.wall_boot_ns
--   asked between             min(first_segment), max(last_segment) over asked_hour bound segment.id; then compare exactly
--   words                     text.sqlite (attached by every reader as `words`): rowid of words.exchange_text is exchange.id
--
-- Rows from before this migration keep rule, bytes and columns in `detail`: they are shown, and not found by them.

CREATE TABLE segment_2 (
    id             INTEGER PRIMARY KEY,
    session_id     BLOB NOT NULL REFERENCES session (id),
    seq            INTEGER NOT NULL,
    run_id         BLOB NOT NULL,
    principal      TEXT NOT NULL,                  -- run.principal_subject
    protocol       TEXT NOT NULL,                  -- of the session, at the end of this segment
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
    first_exchange INTEGER NOT NULL DEFAULT 0,     -- rows of exchanges that finished here, or still ran at its end
    exchanges      INTEGER NOT NULL DEFAULT 0,
    asked_first_ns INTEGER NOT NULL DEFAULT 0,     -- boot: of these rows, when the first and the last were asked
    asked_last_ns  INTEGER NOT NULL DEFAULT 0,
    shapes         BLOB NOT NULL DEFAULT x'',      -- length-delimited Finished with only operation.kind and columns, one after the other
    UNIQUE (session_id, seq)
) STRICT;

INSERT INTO segment_2 (id, session_id, seq, run_id, principal, protocol, bundle, at, len, hash, prev_hash, signature, generation,
    first_boot_ns, last_boot_ns, wall_unix_ns, wall_boot_ns, events, received_ms, receipt)
SELECT row_number() OVER (ORDER BY g.received_ms, g.session_id, g.seq), g.session_id, g.seq, s.run_id, r.principal_subject, s.protocol,
    g.bundle, g.at, g.len, g.hash, g.prev_hash, g.signature, g.generation, g.first_boot_ns, g.last_boot_ns, g.wall_unix_ns,
    g.wall_boot_ns, g.events, g.received_ms, g.receipt
FROM segment g JOIN session s ON s.id = g.session_id JOIN run r ON r.id = s.run_id;

CREATE TABLE exchange_2 (
    id             INTEGER PRIMARY KEY,
    segment        INTEGER NOT NULL,               -- segment.id
    ordinal        INTEGER NOT NULL,               -- in the session, from 1
    asked_boot_ns  INTEGER NOT NULL,
    duration_ns    INTEGER,                        -- NULL while it runs
    first_reply_ns INTEGER NOT NULL,               -- after it was asked; 0 = none
    outcome        INTEGER NOT NULL,               -- enum Outcome: 1 ok, 2 error, 3 denied, 4 withdrawn, 5 aborted
    would_deny     INTEGER NOT NULL,               -- 1: allowed only because its rule observes (tag "would-deny")
    rows           INTEGER NOT NULL,
    request_bytes  INTEGER NOT NULL,
    response_bytes INTEGER NOT NULL,
    shape          INTEGER,                        -- which of segment.shapes, from 0
    protocol       TEXT,                           -- NULL = segment.protocol
    rule           TEXT,                           -- of the verdict; NULL = 'default'
    verb           TEXT NOT NULL,
    status         TEXT NOT NULL,
    error          TEXT NOT NULL,
    statement      TEXT NOT NULL,                  -- Operation.text, cut at STATEMENT_ROW_BYTES_MAX
    detail         BLOB                            -- Finished with what no column and no shape holds; NULL = nothing
) STRICT;

WITH placed AS (
    SELECT e.id AS old, COALESCE(
        (SELECT g.id FROM segment_2 g WHERE g.session_id = e.session_id
            AND g.first_boot_ns <= e.asked_boot_ns + CASE e.done WHEN 1 THEN e.duration_ns ELSE 0 END ORDER BY g.seq DESC LIMIT 1),
        (SELECT g.id FROM segment_2 g WHERE g.session_id = e.session_id ORDER BY g.seq LIMIT 1)) AS segment
    FROM exchange e
)
INSERT INTO exchange_2
SELECT row_number() OVER (ORDER BY p.segment, e.asked_boot_ns, e.ordinal), p.segment, e.ordinal, e.asked_boot_ns,
    CASE e.done WHEN 1 THEN e.duration_ns END, 0, e.outcome, 0, e.rows, 0, 0, NULL,
    CASE WHEN e.protocol <> g.protocol THEN e.protocol END, NULL, e.verb, e.status, e.error, e.statement, e.finished
FROM placed p JOIN exchange e ON e.id = p.old JOIN segment_2 g ON g.id = p.segment;

-- Exchanges that still ran at the end of the last segment that told of them: their row moves when they finish.
CREATE TABLE running (
    session_id BLOB NOT NULL,
    ordinal    INTEGER NOT NULL,
    exchange   INTEGER NOT NULL,                   -- exchange.id
    PRIMARY KEY (session_id, ordinal)
) STRICT, WITHOUT ROWID;
INSERT INTO running SELECT g.session_id, e.ordinal, e.id FROM exchange_2 e JOIN segment_2 g ON g.id = e.segment
    WHERE e.duration_ns IS NULL ON CONFLICT DO NOTHING;

UPDATE segment_2 SET first_exchange = x.first, exchanges = x.count, asked_first_ns = x.asked_first, asked_last_ns = x.asked_last
FROM (SELECT segment, min(id) AS first, count(*) AS count, min(asked_boot_ns) AS asked_first, max(asked_boot_ns) AS asked_last
      FROM exchange_2 GROUP BY segment) x WHERE x.segment = segment_2.id;

-- Which segments hold exchanges that were asked in an hour of wall-clock time.
CREATE TABLE asked_hour (
    hour          INTEGER PRIMARY KEY,             -- hours since 1970-01-01 UTC
    first_segment INTEGER NOT NULL,
    last_segment  INTEGER NOT NULL
) STRICT;
INSERT INTO asked_hour
SELECT (asked - ((asked % 3600000000000) + 3600000000000) % 3600000000000) / 3600000000000 AS hour, min(segment), max(segment)
FROM (SELECT CAST(e.asked_boot_ns + g.wall_unix_ns - g.wall_boot_ns AS INTEGER) AS asked, g.id AS segment
      FROM exchange_2 e JOIN segment_2 g ON g.id = e.segment) GROUP BY hour;

-- The next id of each kind.
CREATE TABLE counter (
    name TEXT PRIMARY KEY,                         -- 'segment', 'exchange'
    next INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO counter VALUES
    ('segment', (SELECT COALESCE(max(id), 0) + 1 FROM segment_2)),
    ('exchange', (SELECT COALESCE(max(id), 0) + 1 FROM exchange_2));

DROP TABLE exchange;
ALTER TABLE exchange_2 RENAME TO exchange;
DROP TABLE segment;
ALTER TABLE segment_2 RENAME TO segment;

CREATE INDEX segment_by_run ON segment (run_id, id);
CREATE INDEX segment_by_principal ON segment (principal, id);
CREATE INDEX segment_by_asked ON segment (run_id, asked_first_ns, asked_last_ns, exchanges) WHERE exchanges > 0;
CREATE INDEX segment_by_bundle ON segment (bundle);
CREATE INDEX segment_by_age ON segment (received_ms);
-- What people look for, and what is rare: errors, denials, would-be denials.
CREATE INDEX exchange_by_outcome ON exchange (outcome) WHERE outcome > 1;
CREATE INDEX exchange_would_deny ON exchange (would_deny) WHERE would_deny = 1;
