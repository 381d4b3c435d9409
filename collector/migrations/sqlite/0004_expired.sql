-- Hashes of segments that retention deleted: an agent that never saw its receipt gets one again for what was held, and for
-- nothing else.
CREATE TABLE expired (
    session_id BLOB NOT NULL REFERENCES session (id),
    seq        INTEGER NOT NULL,
    hash       BLOB NOT NULL,
    PRIMARY KEY (session_id, seq)
) STRICT, WITHOUT ROWID;
